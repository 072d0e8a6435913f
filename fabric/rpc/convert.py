"""What clients send, as protobuf messages and as values, both ways; used by router and client."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

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
from fabric.rpc.convert_output import duration, seconds
from fabric.rpc.v1 import inference_pb2 as pb

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "n",
)
_STOPPING = ("max_tokens", "min_tokens", "include_stop", "ignore_eos")
_OUTPUT = ("logprobs", "skip_special_tokens")
_OBJECTIVES = ("ttft", "tpot", "e2e")


def spec_from_proto(message: pb.GenerationSpec) -> GenerationSpec:
    """Read what the client asks for; values are not checked against a model yet.

    Raises:
        InvalidRequest: There is no prompt.
    """
    return GenerationSpec(
        model=message.model,
        prompt=_prompt_from_proto(message),
        sampling=_overrides_from_proto(message),
        request_id=message.request_id,
        cache_salt=message.cache.salt,
        **_scheduling_from_proto(message.scheduling),
    )


def spec_to_proto(spec: GenerationSpec) -> pb.GenerationSpec:
    """Write what the client asks for.

    Raises:
        InvalidRequest: A value doesn't fit its field's type; names the field.
    """
    message = pb.GenerationSpec()
    with naming("model"):
        message.model = spec.model
    with naming("request_id"):
        message.request_id = spec.request_id
    set_prompt(message, spec.prompt)
    asked = spec.sampling
    _set_present(message.sampling, "sampling", asked, _SAMPLING)
    _set_present(message.stopping, "stopping", asked, _STOPPING)
    _set_present(message.output, "output", asked, _OUTPUT)
    with naming("sampling.logit_bias"):
        message.sampling.logit_bias.update(asked.logit_bias)
    with naming("stopping.stop"):
        message.stopping.stop.extend(asked.stop)
    with naming("stopping.stop_token_ids"):
        message.stopping.stop_token_ids.extend(asked.stop_token_ids)
    _set_scheduling(message.scheduling, spec)
    with naming("cache.salt"):
        message.cache.salt = spec.cache_salt
    return message


def chat_from_proto(message: pb.ChatPrompt) -> PromptChat:
    """Read a conversation."""
    opens_turn = not message.HasField("add_generation_prompt") or message.add_generation_prompt
    return PromptChat(tuple(ChatMessage(m.role, m.content) for m in message.messages), opens_turn)


def set_prompt(message: Any, prompt: Prompt) -> None:
    """Set the prompt of a GenerationSpec or (text and chat only) of a TokenizeRequest.

    Raises:
        InvalidRequest: A token id is negative or too large for its field, or text is no Unicode.
    """
    match prompt:
        case PromptText(text):
            with naming("prompt.text"):
                message.text = text
        case PromptTokens(token_ids):
            message.token_ids.SetInParent()
            with naming("prompt.token_ids"):
                message.token_ids.ids.extend(token_ids)
        case PromptChat(messages, add_generation_prompt):
            message.chat.add_generation_prompt = add_generation_prompt
            with naming("prompt.chat.messages"):
                for item in messages:
                    message.chat.messages.add(role=item.role, content=item.content)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Turn protobuf's complaint about a value into one that names the field.

    Raises:
        InvalidRequest: The value doesn't fit the field.
    """
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest.of(field, f"has a wrong value: {error}") from error


def _prompt_from_proto(message: pb.GenerationSpec) -> Prompt:
    match message.WhichOneof("prompt"):
        case "text":
            return PromptText(message.text)
        case "token_ids":
            return PromptTokens(tuple(message.token_ids.ids))
        case "chat":
            return chat_from_proto(message.chat)
    raise InvalidRequest.of("prompt", "is missing; give text, token_ids or chat")


def _overrides_from_proto(message: pb.GenerationSpec) -> SamplingOverrides:
    stopping = message.stopping
    return SamplingOverrides(
        **_present(message.sampling, _SAMPLING),
        **_present(stopping, _STOPPING),
        **_present(message.output, _OUTPUT),
        logit_bias={token: _decimal(b) for token, b in message.sampling.logit_bias.items()},
        stop=tuple(stopping.stop),
        stop_token_ids=tuple(stopping.stop_token_ids),
    )


def _scheduling_from_proto(message: pb.SchedulingOptions) -> dict[str, Any]:
    return {
        "priority": message.priority,
        "tenant": message.tenant,
        "objectives": _objectives_from_proto(message.objectives),
        "expected_tokens": message.expected_tokens if message.HasField("expected_tokens") else None,
    }


def _objectives_from_proto(message: pb.Objectives) -> Objectives:
    ttft_s, tpot_s, e2e_s = (
        seconds(getattr(message, name)) if message.HasField(name) else None for name in _OBJECTIVES
    )
    return Objectives(ttft_s, tpot_s, e2e_s, message.refuse_if_late)


def _set_scheduling(message: pb.SchedulingOptions, spec: GenerationSpec) -> None:
    with naming("scheduling.priority"):
        message.priority = spec.priority
    with naming("scheduling.tenant"):
        message.tenant = spec.tenant
    for name in _OBJECTIVES:
        objective_s = getattr(spec.objectives, f"{name}_s")
        if objective_s is not None:
            with naming(f"scheduling.objectives.{name}"):
                getattr(message.objectives, name).CopyFrom(duration(objective_s))
    if spec.objectives.refuse_if_late:
        message.objectives.refuse_if_late = True
    if spec.expected_tokens is not None:
        with naming("scheduling.expected_tokens"):
            message.expected_tokens = spec.expected_tokens


def _present(message: Any, names: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(message, name) for name in names if message.HasField(name)}
    return {k: _decimal(v) if isinstance(v, float) else v for k, v in values.items()}


def _decimal(value: float) -> float:
    """The number that the client wrote: a float32 of 0.7 is 0.699999988 as a float64."""
    return float(f"{value:.7g}")


def _set_present(message: Any, parent: str, asked: SamplingOverrides, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(asked, name)
        if value is not None:
            with naming(f"{parent}.{name}"):
                setattr(message, name, value)
