"""From what a client asks for to a request that a device group can run, or an error."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fabric.core.errors import DeadlineExceeded, FieldViolation, InvalidRequest
from fabric.core.prompt import GenerationSpec, Prompt, PromptChat, PromptText, PromptTokens
from fabric.core.request import GenerationRequest, ModelCard, Objectives, ServedModel
from fabric.core.sampling import resolve_sampling, token_id_violation
from fabric.router.tokenizers import TokenizerCache


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Bounds on what is looked at before a prompt is tokenized."""

    max_prompt_chars: int = 4 * 2**20
    max_chat_messages: int = 1024
    max_request_id_chars: int = 128
    max_salt_chars: int = 256
    max_tenant_chars: int = 128
    max_objective_s: float = 86_400.0


class Admission:
    """Checks requests, tokenizes prompts and fills in the model's defaults."""

    def __init__(
        self,
        tokenizers: TokenizerCache,
        limits: AdmissionLimits,
        new_seed: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self._tokenizers = tokenizers
        self._limits = limits
        self._new_seed = new_seed

    async def admit(
        self, spec: GenerationSpec, served: ServedModel, timeout_s: float | None
    ) -> GenerationRequest:
        """The request to dispatch.

        Args:
            spec: What the client asks for, with a request id.
            served: The model.
            timeout_s: What is left of the client's deadline.

        Raises:
            InvalidRequest: One or more fields are wrong.
            DeadlineExceeded: There is no time left.
        """
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        self._check_spec(spec, served.limits.max_model_len)
        token_ids = await self.tokenize(spec.prompt, served.card)
        sampling = resolve_sampling(
            spec.sampling, served.defaults, served.limits, len(token_ids), self._new_seed()
        )
        return GenerationRequest(
            request_id=spec.request_id,
            model=spec.model,
            prompt_token_ids=token_ids,
            sampling=sampling,
            timeout_s=timeout_s,
            priority=spec.priority,
            cache_salt=spec.cache_salt,
            tenant=spec.tenant,
            objectives=spec.objectives,
            expected_tokens=spec.expected_tokens,
        )

    async def tokenize(
        self, prompt: Prompt, card: ModelCard, add_special_tokens: bool = True
    ) -> tuple[int, ...]:
        """The prompt's token ids.

        Raises:
            InvalidRequest: The prompt is empty, too long, or not one for this model.
        """
        match prompt:
            case PromptTokens(token_ids):
                check_token_ids(token_ids, card.vocab_size, "prompt.token_ids")
                return token_ids
            case PromptText(text):
                self._check_length(len(text))
                tokenizer = await self._tokenizers.tokenizer(card)
                ids = await self._tokenizers.run(
                    len(text), lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens)
                )
                return tuple(ids)
            case PromptChat():
                return await self._tokenize_chat(prompt, card)

    async def _tokenize_chat(self, prompt: PromptChat, card: ModelCard) -> tuple[int, ...]:
        most = self._limits.max_chat_messages
        if len(prompt.messages) > most:
            raise InvalidRequest.of(
                "prompt.chat.messages", f"has {len(prompt.messages)} entries; at most {most}"
            )
        num_chars = sum(len(message.content) for message in prompt.messages)
        self._check_length(num_chars, least=0)
        tokenizer = await self._tokenizers.tokenizer(card)
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        opens_turn = prompt.add_generation_prompt
        ids = await self._tokenizers.run(
            num_chars,
            lambda: tokenizer.apply_chat_template(messages, add_generation_prompt=opens_turn),
        )
        return tuple(ids)

    def _check_length(self, num_chars: int, least: int = 1) -> None:
        if num_chars < least:
            raise InvalidRequest.of("prompt", "is empty")
        most = self._limits.max_prompt_chars
        if num_chars > most:
            raise InvalidRequest.of(
                "prompt", f"has {num_chars} characters; at most {most} are allowed"
            )

    def _check_spec(self, spec: GenerationSpec, max_model_len: int) -> None:
        expected = spec.expected_tokens
        violations = [*self._long_names(spec), *self._wrong_objectives(spec.objectives)]
        if expected is not None and not 1 <= expected <= max_model_len:
            allowed = f"allowed: 1 to {max_model_len}"
            violations.append(
                FieldViolation("scheduling.expected_tokens", f"is {expected}; {allowed}")
            )
        if violations:
            raise InvalidRequest(violations)

    def _long_names(self, spec: GenerationSpec) -> Iterator[FieldViolation]:
        limits = self._limits
        lengths = (
            ("request_id", spec.request_id, limits.max_request_id_chars),
            ("cache.salt", spec.cache_salt, limits.max_salt_chars),
            ("scheduling.tenant", spec.tenant, limits.max_tenant_chars),
        )
        for name, text, most in lengths:
            if len(text) > most:
                yield FieldViolation(
                    name, f"has {len(text)} characters; at most {most} are allowed"
                )

    def _wrong_objectives(self, objectives: Objectives) -> Iterator[FieldViolation]:
        most_s = self._limits.max_objective_s
        times_s = (
            ("ttft", objectives.ttft_s), ("tpot", objectives.tpot_s), ("e2e", objectives.e2e_s)
        )  # fmt: skip
        for name, time_s in times_s:
            if time_s is not None and not 0 < time_s <= most_s:
                allowed = f"allowed: above 0, up to {most_s:g} s"
                yield FieldViolation(f"scheduling.objectives.{name}", f"is {time_s} s; {allowed}")


def check_token_ids(token_ids: tuple[int, ...], vocab_size: int, field: str) -> None:
    """Refuse ids that the model's vocabulary doesn't have.

    Raises:
        InvalidRequest: Names the first wrong one's place.
    """
    if token_ids and max(token_ids) >= vocab_size:
        place = next(i for i, token in enumerate(token_ids) if token >= vocab_size)
        name = f"{field}[{place}]"
        raise InvalidRequest([token_id_violation(name, token_ids[place], vocab_size)])
