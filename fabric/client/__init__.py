"""The client SDK: talk to a fabric over gRPC. Needs only grpcio and protobuf."""

from fabric.client.aio import AsyncClient
from fabric.client.channel import TlsOptions
from fabric.client.options import GenerateOptions, PromptLike
from fabric.client.results import DrainOutcome, Tokenized
from fabric.client.retry import RetryPolicy
from fabric.client.stream import AsyncGenerationStream
from fabric.client.sync import Client, GenerationStream
from fabric.core.errors import (
    Aborted,
    DeadlineExceeded,
    FabricError,
    FailedPrecondition,
    FieldViolation,
    GroupNotFound,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProtocolError,
    RequestCancelled,
    RequestError,
    Unauthenticated,
    Unavailable,
)
from fabric.core.generation import Completed, Generation, Sequence, Started, StreamEvent
from fabric.core.plan_steps import PlanProgress, StepState
from fabric.core.prompt import ChatMessage
from fabric.core.request import (
    FinishReason,
    LoadReport,
    ModelLoad,
    Objectives,
    PositionLogprobs,
    SequenceDelta,
    StopMatch,
    Timing,
    TokenLogprob,
    Usage,
)
from fabric.core.status import (
    Explanation,
    FabricStatus,
    GroupState,
    GroupStatus,
    ModelState,
    ModelStatus,
    PolicyChange,
    RequestPhase,
    RequestStatus,
    Residence,
)
from fabric.core.weights import WeightState

__all__ = [
    "Aborted",
    "AsyncClient",
    "AsyncGenerationStream",
    "ChatMessage",
    "Client",
    "Completed",
    "DeadlineExceeded",
    "DrainOutcome",
    "Explanation",
    "FabricError",
    "FabricStatus",
    "FailedPrecondition",
    "FieldViolation",
    "FinishReason",
    "GenerateOptions",
    "Generation",
    "GenerationStream",
    "GroupNotFound",
    "GroupState",
    "GroupStatus",
    "InternalError",
    "InvalidRequest",
    "LoadReport",
    "ModelLoad",
    "ModelNotFound",
    "ModelState",
    "ModelStatus",
    "Objectives",
    "Overloaded",
    "PlanProgress",
    "PolicyChange",
    "PositionLogprobs",
    "PromptLike",
    "ProtocolError",
    "RequestCancelled",
    "RequestError",
    "RequestPhase",
    "RequestStatus",
    "Residence",
    "RetryPolicy",
    "Sequence",
    "SequenceDelta",
    "Started",
    "StepState",
    "StopMatch",
    "StreamEvent",
    "Timing",
    "TlsOptions",
    "TokenLogprob",
    "Tokenized",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "WeightState",
]
