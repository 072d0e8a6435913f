"""RequestErrors to the link's Failure values, and back."""

from fabric.core.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestCancelled,
    RequestError,
    Unavailable,
)
from fabric.rpc.frames import Failure

_RETRYABLE = {kind.__name__: kind for kind in (Overloaded, Unavailable)}
_PLAIN = {
    kind.__name__: kind
    for kind in (DeadlineExceeded, RequestCancelled, FailedPrecondition, Aborted)
}


def failure_of(error: RequestError) -> Failure:
    """The error as it travels over the link."""
    if isinstance(error, InvalidRequest):
        return Failure("InvalidRequest", error.message, error.violations)
    if isinstance(error, ModelNotFound):
        return Failure("ModelNotFound", error.model)
    return Failure(type(error).__name__, error.message, (), error.retry_after_s)


def error_of(failure: Failure) -> RequestError:
    """The error that travelled; one of an unknown class becomes an InternalError."""
    if failure.kind == "InvalidRequest":
        return InvalidRequest(failure.violations)
    if failure.kind == "ModelNotFound":
        return ModelNotFound(failure.message)
    if failure.kind in _RETRYABLE:
        return _RETRYABLE[failure.kind](failure.message, failure.retry_after_s)
    return _PLAIN.get(failure.kind, InternalError)(failure.message)
