"""Progress of a placement plan: values to messages, and back."""

from fabric.core.plan_steps import PlanProgress, StepState
from fabric.rpc.v1 import control_pb2 as pb

_STATES = {
    StepState.PLANNED: pb.PLAN_STEP_STATE_PLANNED,
    StepState.RUNNING: pb.PLAN_STEP_STATE_RUNNING,
    StepState.DONE: pb.PLAN_STEP_STATE_DONE,
    StepState.FAILED: pb.PLAN_STEP_STATE_FAILED,
}
_VALUES = {number: state for state, number in _STATES.items()}


def progress_to_proto(progress: PlanProgress) -> pb.ApplyPlanResponse:
    """One step as a message."""
    return pb.ApplyPlanResponse(
        step=progress.step,
        description=progress.description,
        num_bytes=progress.num_bytes,
        state=_STATES[progress.state],
        error=progress.error,
    )


def progress_from_proto(message: pb.ApplyPlanResponse) -> PlanProgress:
    """One step; a state that is not known counts as running."""
    return PlanProgress(
        step=message.step,
        description=message.description,
        num_bytes=message.num_bytes,
        state=_VALUES.get(message.state, StepState.RUNNING),
        error=message.error,
    )
