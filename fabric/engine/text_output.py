"""Makes text from tokens, and finds the stop strings in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from fabric.core.request import FinishReason, GenerationRequest, SequenceDelta, StopMatch
from fabric.models.detokenizer import IncrementalDetokenizer
from fabric.models.stop_strings import StopStringMatcher
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.output import SequenceUpdate


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A step's delta of a sequence with its text; ``stop`` is a stop string found just now."""

    delta: SequenceDelta
    stop: StopMatch | None = None


class SequenceText:
    """The text of one sequence so far: a detokenizer, then a stop-string matcher."""

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest) -> None:
        sampling = request.sampling
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, sampling.skip_special_tokens, request.prompt_token_ids
        )
        self._matcher = StopStringMatcher(sampling.stop, sampling.include_stop)
        self._include_stop = sampling.include_stop
        self._min_tokens = sampling.min_tokens

    def push(self, update: SequenceUpdate) -> TextDelta:
        """Turn an update into a delta with text, ended early where a stop string matched."""
        text, matched = self._text(update)
        stop = None if matched is None else StopMatch(text=matched)
        delta = SequenceDelta(
            index=update.index,
            first_token=update.first_token,
            token_ids=update.token_ids,
            text=text,
            logprobs=update.logprobs,
            finish_reason=update.finish_reason if stop is None else FinishReason.STOP,
            stop_match=update.stop_match if stop is None else stop,
        )
        return TextDelta(delta, stop)

    def _text(self, update: SequenceUpdate) -> tuple[str, str | None]:
        token_ids = update.token_ids
        ended_by_token = update.stop_match is not None
        if ended_by_token and not self._include_stop:
            token_ids = token_ids[:-1]
        raw = self._detokenizer.push(token_ids)
        if update.finish_reason is not None:
            raw += self._detokenizer.flush()
        if update.first_token + len(update.token_ids) < self._min_tokens:
            return raw, None
        text, matched = self._matcher.push(raw)
        if matched is None and update.finish_reason is not None:
            text += self._matcher.flush()
        return text, matched


class TextOutput:
    """The texts of all sequences of an engine's requests."""

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Make texts with the tokenizer of each request's model."""
        self._tokenizers = tokenizers
        self._requests: dict[str, GenerationRequest] = {}
        self._texts: dict[str, dict[int, SequenceText]] = {}

    def add(self, request: GenerationRequest) -> None:
        """Start a request."""
        self._requests[request.request_id] = request
        self._texts[request.request_id] = {}

    def push(self, update: SequenceUpdate) -> TextDelta:
        """Turn what a step gave a sequence into a delta with text."""
        texts = self._texts[update.request_id]
        text = texts.get(update.index)
        if text is None:
            request = self._requests[update.request_id]
            tokenizer = self._tokenizers[request.model]
            text = texts[update.index] = SequenceText(tokenizer, request)
        return text.push(update)

    def remove(self, request_id: str) -> None:
        """Forget a request."""
        del self._requests[request_id], self._texts[request_id]
