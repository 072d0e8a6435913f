"""What a benchmark sends: random token ids or a file's prompts, within each model's context."""

import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.client import AsyncClient, PromptLike
from fabric.core.errors import ConfigError
from fabric.core.traces import Arrival


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send: to which model, seconds after the start, and most output tokens."""

    model: str
    at_s: float
    prompt: str | tuple[int, ...]
    max_tokens: int


def read_prompts(path: Path) -> list[str]:
    """Read prompts from JSON lines: ``prompt``, GSM8K's ``question`` or MT-bench's first turn.

    Raises:
        ConfigError: The file can't be read, is empty, or a line has none of these; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts {path}: {error}") from error
    prompts = [_prompt_of(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    if not prompts:
        raise ConfigError(f"{path} holds no prompts")
    return prompts


def _prompt_of(line: str, place: str) -> str:
    try:
        row = json.loads(line)
        found = row.get("prompt") or row.get("question") or row["turns"][0]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(f"{place}: needs a prompt, question or turns") from error
    if not isinstance(found, str):
        raise ConfigError(f"{place}: the prompt is not a string")
    return found


def plan_random(
    arrivals: Iterable[Arrival], vocab_sizes: Mapping[str, int], seed: int
) -> list[PlannedRequest]:
    """Give each arrival a prompt of its length of its model's token ids, drawn at random."""
    rng = random.Random(seed)
    return [
        PlannedRequest(
            arrival.model,
            arrival.at_s,
            tuple(rng.choices(range(vocab_sizes[arrival.model]), k=arrival.input_len)),
            arrival.output_len,
        )
        for arrival in arrivals
    ]


def plan_prompts(arrivals: Iterable[Arrival], prompts: list[str]) -> list[PlannedRequest]:
    """Give the arrivals the prompts in order, from the start again when they run out."""
    texts = itertools.cycle(prompts)
    return [PlannedRequest(a.model, a.at_s, next(texts), a.output_len) for a in arrivals]


def fit_contexts(arrivals: Iterable[Arrival], limits: Mapping[str, int]) -> list[Arrival]:
    """Cut what is longer than its model's context: first the output, to half of it at least.

    Args:
        arrivals: Their lengths are at least 1.
        limits: Most tokens of prompt and output together, by model.
    """
    return [_fit_context(arrival, limits[arrival.model]) for arrival in arrivals]


def _fit_context(arrival: Arrival, limit: int) -> Arrival:
    output_len = min(arrival.output_len, max(limit // 2, limit - arrival.input_len))
    return replace(
        arrival, input_len=min(arrival.input_len, limit - output_len), output_len=output_len
    )


async def fit_texts(
    client: AsyncClient, requests: Sequence[PlannedRequest], *, is_chat: bool
) -> list[PlannedRequest]:
    """Cut the outputs to what each model's tokenizer leaves of its context.

    A prompt that fills the context by itself stays as it is, and will be refused.
    """
    room: dict[tuple[str, str | tuple[int, ...]], int] = {}
    for request in requests:
        key = request.model, request.prompt
        if key not in room:
            found = await client.tokenize(request.model, as_sent(request.prompt, is_chat=is_chat))
            room[key] = max(found.max_model_len - len(found.token_ids), 1)
    return [replace(r, max_tokens=min(r.max_tokens, room[r.model, r.prompt])) for r in requests]


def as_sent(prompt: str | tuple[int, ...], *, is_chat: bool) -> PromptLike:
    """The prompt as the client takes it; with ``is_chat`` a text is a user's message."""
    if is_chat and isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt
