"""Requests in flight and changes of policy, as protobuf messages and as values, both ways."""

from fabric.core.status import Explanation, PolicyChange, RequestPhase, RequestStatus
from fabric.rpc.convert_output import timing_from_proto, timing_to_proto
from fabric.rpc.v1 import control_pb2 as pb

_TO_PHASE = {
    RequestPhase.WAITING: pb.REQUEST_PHASE_WAITING,
    RequestPhase.PREFILL: pb.REQUEST_PHASE_PREFILL,
    RequestPhase.DECODE: pb.REQUEST_PHASE_DECODE,
    RequestPhase.PREEMPTED: pb.REQUEST_PHASE_PREEMPTED,
    RequestPhase.SWAPPING_OUT: pb.REQUEST_PHASE_SWAPPING_OUT,
    RequestPhase.SWAPPED: pb.REQUEST_PHASE_SWAPPED,
    RequestPhase.SWAPPING_IN: pb.REQUEST_PHASE_SWAPPING_IN,
}
_FROM_PHASE = {number: phase for phase, number in _TO_PHASE.items()}


def explanation_to_proto(explanation: Explanation) -> pb.ExplainRequestsResponse:
    """Write where requests are."""
    return pb.ExplainRequestsResponse(
        requests=map(_request_to_proto, explanation.requests),
        num_omitted=explanation.num_omitted,
        unanswered=explanation.unanswered,
    )


def explanation_from_proto(message: pb.ExplainRequestsResponse) -> Explanation:
    """Read where requests are; a phase that we don't know counts as waiting."""
    return Explanation(
        tuple(map(_request_from_proto, message.requests)),
        message.num_omitted,
        tuple(message.unanswered),
    )


def change_to_proto(change: PolicyChange) -> pb.PolicyChange:
    """Write what a device group did."""
    return pb.PolicyChange(
        group=change.group, before=change.before, after=change.after, error=change.error
    )


def change_from_proto(message: pb.PolicyChange) -> PolicyChange:
    """Read what a device group did."""
    return PolicyChange(message.group, message.before, message.after, message.error)


def _request_to_proto(status: RequestStatus) -> pb.RequestStatus:
    return pb.RequestStatus(
        request_id=status.request_id,
        model=status.model,
        phase=_TO_PHASE[status.phase],
        tenant=status.tenant,
        priority=status.priority,
        rank=status.rank,
        level=status.level,
        num_prompt_tokens=status.num_prompt_tokens,
        num_output_tokens=status.num_output_tokens,
        num_blocks=status.num_blocks,
        num_parked_blocks=status.num_parked_blocks,
        tier=status.tier,
        last_preemption=status.last_preemption,
        timing=timing_to_proto(status.timing),
    )


def _request_from_proto(message: pb.RequestStatus) -> RequestStatus:
    return RequestStatus(
        request_id=message.request_id,
        model=message.model,
        phase=_FROM_PHASE.get(message.phase, RequestPhase.WAITING),
        tenant=message.tenant,
        priority=message.priority,
        rank=tuple(message.rank),
        level=message.level if message.HasField("level") else None,
        num_prompt_tokens=message.num_prompt_tokens,
        num_output_tokens=message.num_output_tokens,
        num_blocks=message.num_blocks,
        num_parked_blocks=message.num_parked_blocks,
        tier=message.tier,
        last_preemption=message.last_preemption,
        timing=timing_from_proto(message.timing),
    )
