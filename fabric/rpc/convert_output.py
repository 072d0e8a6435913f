"""What the fabric answers, as protobuf messages and as values, both ways."""

from google.protobuf.duration_pb2 import Duration

from fabric.core.generation import Completed, Generation, Sequence, Started, StreamEvent
from fabric.core.request import (
    FinishReason,
    PositionLogprobs,
    SequenceDelta,
    StopMatch,
    Timing,
    TokenLogprob,
    Usage,
)
from fabric.rpc.v1 import inference_pb2 as pb

_TO_FINISH = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: pb.FINISH_REASON_DEADLINE,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_FROM_FINISH = {number: reason for reason, number in _TO_FINISH.items()}


def delta_to_proto(delta: SequenceDelta) -> pb.GenerateStreamResponse:
    """Write a delta as a stream event; one with a token and text alone is the hot path."""
    response = pb.GenerateStreamResponse()
    _fill_delta(response.delta, delta)
    return response


def _fill_delta(message: pb.SequenceDelta, delta: SequenceDelta) -> None:
    message.index = delta.index
    message.first_token = delta.first_token
    message.token_ids.extend(delta.token_ids)
    if delta.text:
        message.text = delta.text
    if delta.logprobs:
        message.logprobs.extend(logprobs_to_proto(item) for item in delta.logprobs)
    if delta.finish_reason is not None:
        message.finish_reason = _TO_FINISH[delta.finish_reason]
    if delta.stop_match is not None:
        message.stop_match.CopyFrom(_stop_to_proto(delta.stop_match))


def delta_from_proto(message: pb.SequenceDelta) -> SequenceDelta:
    """Read a delta."""
    return SequenceDelta(
        message.index,
        message.first_token,
        tuple(message.token_ids),
        message.text,
        tuple(map(logprobs_from_proto, message.logprobs)),
        _FROM_FINISH.get(message.finish_reason),
        _stop_from_proto(message.stop_match) if message.HasField("stop_match") else None,
    )


def event_to_proto(event: StreamEvent) -> pb.GenerateStreamResponse:
    """Write one event of a streamed answer."""
    match event:
        case SequenceDelta():
            return delta_to_proto(event)
        case Started():
            started = pb.Started(
                request_id=event.request_id,
                model=event.model,
                prompt_tokens=event.prompt_tokens,
                seed=event.seed,
            )
            return pb.GenerateStreamResponse(started=started)
        case Completed():
            completed = pb.Completed(
                usage=usage_to_proto(event.usage), timing=timing_to_proto(event.timing)
            )
            return pb.GenerateStreamResponse(completed=completed)


def event_from_proto(message: pb.GenerateStreamResponse) -> StreamEvent | None:
    """Read one event of a streamed answer; None if it is of a kind that we don't know."""
    match message.WhichOneof("event"):
        case "delta":
            return delta_from_proto(message.delta)
        case "started":
            it = message.started
            return Started(it.request_id, it.model, it.prompt_tokens, it.seed)
        case "completed":
            return Completed(
                usage_from_proto(message.completed.usage),
                timing_from_proto(message.completed.timing),
            )
    return None


def generation_to_proto(answer: Generation) -> pb.GenerateResponse:
    """Write the whole answer."""
    return pb.GenerateResponse(
        request_id=answer.request_id,
        model=answer.model,
        sequences=map(_sequence_to_proto, answer.sequences),
        usage=usage_to_proto(answer.usage),
        timing=timing_to_proto(answer.timing),
        seed=answer.seed,
    )


def generation_from_proto(message: pb.GenerateResponse) -> Generation:
    """Read the whole answer."""
    return Generation(
        message.request_id,
        message.model,
        tuple(map(_sequence_from_proto, message.sequences)),
        usage_from_proto(message.usage),
        timing_from_proto(message.timing),
        message.seed,
    )


def _sequence_to_proto(sequence: Sequence) -> pb.Sequence:
    message = pb.Sequence(
        index=sequence.index,
        text=sequence.text,
        token_ids=sequence.token_ids,
        logprobs=map(logprobs_to_proto, sequence.logprobs),
    )
    if sequence.finish_reason is not None:
        message.finish_reason = _TO_FINISH[sequence.finish_reason]
    if sequence.stop_match is not None:
        message.stop_match.CopyFrom(_stop_to_proto(sequence.stop_match))
    return message


def _sequence_from_proto(message: pb.Sequence) -> Sequence:
    return Sequence(
        message.index,
        message.text,
        tuple(message.token_ids),
        _FROM_FINISH.get(message.finish_reason),
        tuple(map(logprobs_from_proto, message.logprobs)),
        _stop_from_proto(message.stop_match) if message.HasField("stop_match") else None,
    )


def logprobs_to_proto(position: PositionLogprobs) -> pb.PositionLogprobs:
    """Write the log-probabilities at one position."""
    return pb.PositionLogprobs(
        chosen=_logprob_to_proto(position.chosen), top=map(_logprob_to_proto, position.top)
    )


def logprobs_from_proto(message: pb.PositionLogprobs) -> PositionLogprobs:
    """Read the log-probabilities at one position."""
    return PositionLogprobs(
        _logprob_from_proto(message.chosen), tuple(map(_logprob_from_proto, message.top))
    )


def _logprob_to_proto(item: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=item.token_id, logprob=item.logprob, rank=item.rank)


def _logprob_from_proto(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.logprob, message.rank)


def _stop_to_proto(stop: StopMatch) -> pb.StopMatch:
    if stop.token_id is not None:
        return pb.StopMatch(token_id=stop.token_id)
    return pb.StopMatch(text=stop.text or "")


def _stop_from_proto(message: pb.StopMatch) -> StopMatch:
    if message.WhichOneof("match") == "token_id":
        return StopMatch(token_id=message.token_id)
    return StopMatch(text=message.text)


def usage_to_proto(usage: Usage) -> pb.Usage:
    """Write token counts."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def usage_from_proto(message: pb.Usage) -> Usage:
    """Read token counts."""
    return Usage(message.prompt_tokens, message.completion_tokens, message.cached_tokens)


def timing_to_proto(timing: Timing) -> pb.Timing:
    """Write where the time went."""
    return pb.Timing(
        queue=duration(timing.queue_s),
        prefill=duration(timing.prefill_s),
        ttft=duration(timing.ttft_s),
        decode=duration(timing.decode_s),
        e2e=duration(timing.e2e_s),
        preemptions=timing.num_preemptions,
        group=timing.group,
        swapped=duration(timing.swapped_s) if timing.swapped_s else None,
        swapped_bytes=timing.swapped_bytes,
        recomputed_tokens=timing.recomputed_tokens,
        load=duration(timing.load_s) if timing.load_s else None,
    )


def timing_from_proto(message: pb.Timing) -> Timing:
    """Read where the time went."""
    return Timing(
        seconds(message.queue),
        seconds(message.prefill),
        seconds(message.ttft),
        seconds(message.decode),
        seconds(message.e2e),
        message.preemptions,
        seconds(message.swapped),
        message.swapped_bytes,
        message.recomputed_tokens,
        message.group,
        seconds(message.load),
    )


def duration(seconds_: float) -> Duration:
    """Seconds as a protobuf duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds_ * 1e9))
    return message


def seconds(message: Duration) -> float:
    """A protobuf duration in seconds."""
    return message.seconds + message.nanos * 1e-9
