"""How output tokens are chosen: parameters, their defaults and their limits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from fabric.core.errors import FieldViolation, InvalidRequest

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are sampled and when they stop; every field is decided.

    ``temperature`` 0 is greedy; ``top_k`` 0 keeps all tokens; ``logprobs`` None returns none,
    0 the chosen token's alone, k the k most likely too. ``seed`` with the sequence index and the
    token's position determines every random draw, whatever else is in the batch.
    """

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken, with no randomness."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOverrides:
    """What a client asked for; None means the model's own default."""

    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    skip_special_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The sampling defaults of a model, from its generation_config.json."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The bounds that a request is checked against before anything is allocated for it."""

    max_model_len: int
    vocab_size: int
    max_n: int = 16
    max_stop_strings: int = 16
    max_stop_chars: int = 256
    max_stop_token_ids: int = 256
    max_logit_bias: int = 1024
    max_logprobs: int = 20


def resolve_sampling(
    overrides: SamplingOverrides,
    defaults: GenerationDefaults,
    limits: RequestLimits,
    num_prompt_tokens: int,
    seed: int,
) -> SamplingParams:
    """Merge what the client asked for with the model's defaults, and check every field.

    Args:
        overrides: The client's parameters.
        defaults: The model's defaults.
        limits: The model's and the server's bounds.
        num_prompt_tokens: Length of the prompt; output may fill the rest of the context.
        seed: Used where the client gave none.

    Raises:
        InvalidRequest: One or more fields are wrong; names each of them.
    """
    violations = [
        *_prompt_violations(num_prompt_tokens, limits),
        *_range_violations(overrides, limits),
        *_list_violations(overrides, limits),
    ]
    if violations:
        raise InvalidRequest(violations)
    room = limits.max_model_len - num_prompt_tokens
    asked = {
        f.name: value
        for f in fields(overrides)
        if (value := getattr(overrides, f.name)) is not None and f.name != "logit_bias"
    }
    values: dict[str, object] = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
        "seed": seed,
        **asked,
        "max_tokens": min(overrides.max_tokens or room, room),
        "logit_bias": tuple(sorted(overrides.logit_bias.items())),
    }
    return SamplingParams(**values)  # type: ignore[arg-type]


def _prompt_violations(num_prompt_tokens: int, limits: RequestLimits) -> list[FieldViolation]:
    if num_prompt_tokens == 0:
        return [FieldViolation("prompt", "is empty; at least one token is needed")]
    if num_prompt_tokens >= limits.max_model_len:
        return [
            FieldViolation(
                "prompt",
                f"has {num_prompt_tokens} tokens; the model's context of {limits.max_model_len} "
                f"must also hold at least one output token",
            )
        ]
    return []


def _range_violations(asked: SamplingOverrides, limits: RequestLimits) -> list[FieldViolation]:
    inf = math.inf
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("sampling.temperature", asked.temperature, 0.0, 100.0),
        ("sampling.top_p", asked.top_p, 1e-6, 1.0),
        ("sampling.min_p", asked.min_p, 0.0, 1.0),
        ("sampling.top_k", asked.top_k, -1, 2**31 - 1),
        ("sampling.repetition_penalty", asked.repetition_penalty, 1e-3, 1e3),
        ("sampling.presence_penalty", asked.presence_penalty, -2.0, 2.0),
        ("sampling.frequency_penalty", asked.frequency_penalty, -2.0, 2.0),
        ("sampling.n", asked.n, 1, limits.max_n),
        ("sampling.seed", asked.seed, 0, MAX_SEED),
        ("stopping.max_tokens", asked.max_tokens, 1, inf),
        ("stopping.min_tokens", asked.min_tokens, 0, asked.max_tokens or limits.max_model_len),
        ("output.logprobs", asked.logprobs, 0, limits.max_logprobs),
    )
    return [
        FieldViolation(name, f"is {value}; allowed: {low} to {high}")
        for name, value, low, high in bounds
        if value is not None and not low <= value <= high
    ]


def _list_violations(asked: SamplingOverrides, limits: RequestLimits) -> list[FieldViolation]:
    lengths = (
        ("stopping.stop", len(asked.stop), limits.max_stop_strings),
        ("stopping.stop_token_ids", len(asked.stop_token_ids), limits.max_stop_token_ids),
        ("sampling.logit_bias", len(asked.logit_bias), limits.max_logit_bias),
    )
    too_long = [
        FieldViolation(name, f"has {length} entries; at most {most} are allowed")
        for name, length, most in lengths
        if length > most
    ]
    if too_long:
        return too_long
    strings = [
        FieldViolation(f"stopping.stop[{i}]", f"must have 1 to {limits.max_stop_chars} characters")
        for i, text in enumerate(asked.stop)
        if not 0 < len(text) <= limits.max_stop_chars
    ]
    ids = [
        token_id_violation(name, token, limits.vocab_size)
        for name, tokens in (
            ("stopping.stop_token_ids", asked.stop_token_ids),
            ("sampling.logit_bias", tuple(asked.logit_bias)),
        )
        for token in tokens
        if not 0 <= token < limits.vocab_size
    ]
    biases = [
        FieldViolation(f"sampling.logit_bias[{token}]", f"is {bias}; allowed: -100 to 100")
        for token, bias in asked.logit_bias.items()
        if not -100.0 <= bias <= 100.0
    ]
    return strings + ids + biases


def token_id_violation(name: str, token: int, vocab_size: int) -> FieldViolation:
    """The violation of a token id that is outside the vocabulary."""
    return FieldViolation(name, f"token id {token} is outside the vocabulary 0 to {vocab_size - 1}")
