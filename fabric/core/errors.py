"""The one tree of errors; fabric.rpc.status maps it to gRPC statuses, on both sides.

FabricError
├── RequestError              the caller's request ends with it
│   ├── InvalidRequest        INVALID_ARGUMENT    a field is wrong; names it
│   ├── ModelNotFound         NOT_FOUND
│   ├── GroupNotFound         NOT_FOUND
│   ├── Unauthenticated       UNAUTHENTICATED
│   ├── Overloaded            RESOURCE_EXHAUSTED  try again later
│   ├── Unavailable           UNAVAILABLE         a group died, is loading or drains; try again
│   ├── DeadlineExceeded      DEADLINE_EXCEEDED
│   ├── RequestCancelled      CANCELLED
│   ├── FailedPrecondition    FAILED_PRECONDITION what is asked can't be done as things are
│   ├── Aborted               ABORTED             something else is at it; ask again afterwards
│   └── InternalError         INTERNAL            our bug
├── ConfigError               a configuration file or option; names the path
├── SourceError               weights can't be fetched, or their hash is wrong
├── CheckpointError           missing, unused or mis-shaped tensors; names them
├── GroupError                ranks can't go on together; they need a new group, of a new epoch
│   ├── PeerLost              a rank died or froze; names it
│   ├── GroupTimeout          the ranks live, but one didn't come in time
│   ├── GroupAborted          a rank gave the group up
│   └── StaleEpoch            the rank belongs to a group that has been replaced
└── ProtocolError             a frame on the link breaks the schema or a bound
"""

from dataclasses import dataclass


class FabricError(Exception):
    """Every error that llm-fabric raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request, and what is wrong and allowed."""

    field: str
    description: str


class RequestError(FabricError):
    """A request ends with this error; other requests are not touched."""

    retry_after_s: float | None = None


class InvalidRequest(RequestError):
    """One or more fields of a request are wrong."""

    def __init__(self, violations: list[FieldViolation] | tuple[FieldViolation, ...]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidRequest":
        """Build the error for a single field."""
        return cls([FieldViolation(field, description)])


class ModelNotFound(RequestError):
    """No model of this name is served."""

    def __init__(self, model: str, known: tuple[str, ...] = ()) -> None:
        served = f"; served: {', '.join(known)}" if known else ""
        super().__init__(f"model {model!r} is not served{served}")
        self.model = model


class GroupNotFound(RequestError):
    """No device group has this name."""

    def __init__(self, group: str, known: tuple[str, ...] = ()) -> None:
        names = f"; known: {', '.join(known)}" if known else ""
        super().__init__(f"device group {group!r} is not known{names}")
        self.group = group


class Unauthenticated(RequestError):
    """A credential is missing or wrong."""


class _Retryable(RequestError):
    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(_Retryable):
    """A bounded queue or a limit is full."""


class Unavailable(_Retryable):
    """Nobody can serve the request now: a group died, is loading, or drains."""


class DeadlineExceeded(RequestError):
    """The client's deadline passed before the request finished."""


class RequestCancelled(RequestError):
    """The client went away or asked to stop."""


class FailedPrecondition(RequestError):
    """What is asked can't be done as things are; asking again changes nothing."""


class Aborted(RequestError):
    """Something else is at it."""


class InternalError(RequestError):
    """An error of ours."""


class ConfigError(FabricError):
    """A configuration is wrong; the message names the path of the bad key."""


class SourceError(FabricError):
    """Weights or a tokenizer can't be fetched, read, or don't have the expected hash."""


class CheckpointError(FabricError):
    """A checkpoint's tensors don't fit the model; the message names them."""


class GroupError(FabricError):
    """The ranks of a group can't go on together; only a new group can."""


class PeerLost(GroupError):
    """A rank of the group died, froze or can't be reached any more."""

    def __init__(self, rank: int, message: str = "is lost") -> None:
        super().__init__(f"rank {rank} {message}")
        self.rank = rank


class GroupTimeout(GroupError):
    """An operation took too long although all ranks are alive."""


class GroupAborted(GroupError):
    """A rank gave the group up while others may still have been waiting in it."""


class StaleEpoch(GroupError):
    """The rank belongs to an older or a later epoch than the one that is meeting now."""


class ProtocolError(FabricError):
    """A frame on the router-to-group link breaks the schema, the version or a bound."""
