"""Tells for each live request where it is, why it had to give way, and what that has cost."""

from collections import Counter
from dataclasses import replace

from fabric.core.status import RequestPhase, RequestStatus
from fabric.kv.transfer import Tier
from fabric.scheduler.plan import StepPlan
from fabric.scheduler.request import RequestState, SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool

_PHASES = {
    SequenceStatus.NEW: RequestPhase.WAITING,
    SequenceStatus.WAITING: RequestPhase.WAITING,
    SequenceStatus.COPYING_OUT: RequestPhase.SWAPPING_OUT,
    SequenceStatus.PARKED: RequestPhase.SWAPPED,
    SequenceStatus.COPYING_IN: RequestPhase.SWAPPING_IN,
}


def explain(pool: RequestPool, plan: StepPlan, now: float) -> tuple[RequestStatus, ...]:
    """The status of each live request, in order of arrival; ``plan`` is the last iteration's."""
    return tuple(_status(request, pool, plan, now) for request in pool.requests.values())


def _status(request: RequestState, pool: RequestPool, plan: StepPlan, now: float) -> RequestStatus:
    source, lane = request.source, pool.lanes[request.lane]
    timing = request.timing(now)
    if request.admitted_s is None:
        timing = replace(timing, load_s=lane.absent_until_s(now) - request.absent_s)
    # Among several sequences, the one that is served first stands for the request.
    first = min(request.sequences.values(), key=lambda sequence: sequence.order)
    num_blocks, tiers = 0, Counter[Tier]()
    for sequence in request.sequences.values():
        num_here, places = lane.kv.places(sequence.key)
        num_blocks += num_here
        tiers.update(places)
    return RequestStatus(
        request_id=source.request_id,
        model=source.model,
        phase=_phase(first, plan),
        tenant=source.tenant,
        priority=source.priority,
        rank=tuple(map(float, first.order)),
        level=pool.policy.level(first),
        num_prompt_tokens=len(source.prompt_token_ids),
        num_output_tokens=request.num_output_tokens,
        num_blocks=num_blocks,
        num_parked_blocks=tiers.total(),
        tier="+".join(sorted(tiers)),
        last_preemption=request.last_preemption,
        timing=timing,
    )


def _phase(sequence: SequenceState, plan: StepPlan) -> RequestPhase:
    if sequence.status is not SequenceStatus.RUNNING:
        return _PHASES[sequence.status]
    is_in_flight = sequence.num_scheduled_tokens > sequence.num_computed_tokens
    if sequence.key not in plan and not is_in_flight:
        return RequestPhase.PREEMPTED
    if sequence.num_computed_tokens < sequence.num_prompt_tokens:
        return RequestPhase.PREFILL
    return RequestPhase.DECODE
