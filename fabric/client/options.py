"""What callers may write: prompts in short forms, and generation options by keyword."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TypedDict, cast

from fabric.core.errors import InvalidRequest
from fabric.core.prompt import (
    ChatMessage,
    GenerationSpec,
    Prompt,
    PromptChat,
    PromptText,
    PromptTokens,
)
from fabric.core.request import Objectives
from fabric.core.sampling import SamplingOverrides

# Plain text, token ids, or a conversation of messages or {"role": ..., "content": ...} mappings.
PromptLike = str | Sequence[int] | Sequence[ChatMessage | Mapping[str, str]] | Prompt


class GenerateOptions(TypedDict, total=False):
    """Options of one generation; what is left out comes from the model's generation_config.

    ``timeout_s`` is the deadline of this call, all attempts together. ``objectives`` say how fast
    the answer should be; with their ``refuse_if_late``, a request that is predicted to miss one
    raises Overloaded at once, with a time to try again after, instead of being served late. The
    others are described in ``protos/fabric/rpc/v1/inference.proto``.
    """

    max_tokens: int | None
    min_tokens: int | None
    n: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool | None
    ignore_eos: bool | None
    logprobs: int | None
    skip_special_tokens: bool | None
    priority: int
    tenant: str
    objectives: Objectives
    expected_tokens: int | None
    cache_salt: str
    request_id: str
    timeout_s: float | None


_SCHEDULING = ("priority", "tenant", "objectives", "expected_tokens", "cache_salt", "request_id")


def build_spec(model: str, prompt: PromptLike, options: GenerateOptions) -> GenerationSpec:
    """Describe a generation.

    Raises:
        InvalidRequest: The prompt has none of the accepted forms.
        TypeError: There is no such option.
    """
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    stop = options.get("stop", ())
    apart = {*_SCHEDULING, "timeout_s"}
    given = {name: value for name, value in options.items() if name not in apart}
    given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    given["stop_token_ids"] = tuple(options.get("stop_token_ids", ()))
    return GenerationSpec(
        model=model,
        prompt=as_prompt(prompt),
        sampling=SamplingOverrides(**given),  # type: ignore[arg-type]
        **{name: options[name] for name in _SCHEDULING if name in options},  # type: ignore[literal-required]
    )


def as_prompt(prompt: PromptLike) -> Prompt:
    """Tell the forms of a prompt apart; an empty sequence counts as no token ids.

    Raises:
        InvalidRequest: It has none of the accepted forms.
    """
    if isinstance(prompt, PromptText | PromptTokens | PromptChat):
        return prompt
    if isinstance(prompt, str):
        return PromptText(prompt)
    items = tuple(prompt)
    if all(isinstance(item, Integral) for item in items):
        return PromptTokens(tuple(map(int, cast(tuple[int, ...], items))))
    return PromptChat(tuple(_as_message(item, place) for place, item in enumerate(items)))


def _as_message(item: object, place: int) -> ChatMessage:
    if isinstance(item, ChatMessage):
        return item
    if isinstance(item, Mapping) and item.keys() == {"role", "content"}:
        role, content = item["role"], item["content"]
        if isinstance(role, str) and isinstance(content, str):
            return ChatMessage(role, content)
    raise InvalidRequest.of(
        f"prompt[{place}]", "is neither a ChatMessage nor a mapping of role and content strings"
    )
