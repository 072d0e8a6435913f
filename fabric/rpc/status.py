"""Errors as gRPC statuses with google.rpc details, both ways: the only table of the two."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from fabric.core.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    GroupNotFound,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestCancelled,
    RequestError,
    Unauthenticated,
    Unavailable,
)
from fabric.rpc.convert_output import duration, seconds

DOMAIN = "llm-fabric"
DETAILS_KEY = "grpc-status-details-bin"
# Trailers are limited to 8 KiB in all: the message travels twice, once percent-encoded.
MAX_MESSAGE_BYTES = 1024
MAX_VIOLATIONS_BYTES = 1536

_CODES: dict[type[RequestError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    GroupNotFound: grpc.StatusCode.NOT_FOUND,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Aborted: grpc.StatusCode.ABORTED,
    InternalError: grpc.StatusCode.INTERNAL,
}
_ERRORS = {code: kind for kind, code in _CODES.items()}
_NOT_FOUND: dict[str, type[ModelNotFound | GroupNotFound]] = {
    "model": ModelNotFound,
    "device group": GroupNotFound,
}

TrailingMetadata = tuple[tuple[str, str | bytes], ...]


def to_status(error: RequestError) -> tuple[grpc.StatusCode, str, TrailingMetadata]:
    """The status code, message and trailing metadata that tell a client of the error."""
    code = status_code(error)
    message = bounded(error.message, MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in _details(error, type(error).__name__):
        status.details.add().Pack(detail)
    return code, message, ((DETAILS_KEY, status.SerializeToString()),)


def status_code(error: RequestError) -> grpc.StatusCode:
    """The status code of an error."""
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)


def from_rpc_error(error: grpc.RpcError) -> RequestError:
    """The typed error that a failed call stands for.

    Args:
        error: As raised by a call of grpc or grpc.aio.
    """
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    # Typed as keyed pairs by one stub and as plain pairs by another; both are pairs.
    metadata = cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
    details = _read_details(metadata)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        found = details.field_violations or (FieldViolation("request", message),)
        return InvalidRequest(found)
    if code == grpc.StatusCode.NOT_FOUND:
        return _not_found(message, details)
    if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
        kind = Overloaded if code == grpc.StatusCode.RESOURCE_EXHAUSTED else Unavailable
        return kind(message, details.retry_after_s)
    if code == grpc.StatusCode.PERMISSION_DENIED:
        return Unauthenticated(message)
    return _ERRORS.get(code, InternalError)(message)


def bounded(text: str, max_bytes: int) -> str:
    """The text, cut to a number of bytes in UTF-8, with an ellipsis where it was cut."""
    raw = text.encode(errors="replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    return raw[: max_bytes - 3].decode(errors="ignore") + "…"


def _not_found(message: str, details: "_Details") -> RequestError:
    kind = _NOT_FOUND.get(details.resource_type)
    if kind is None:
        # Not ours: a server that lacks the method, or something in between.
        return InternalError(f"NOT_FOUND: {message}")
    error = kind(details.resource_name)
    error.message = message
    error.args = (message,)
    return error


def _details(error: RequestError, reason: str) -> Iterable[Message]:
    yield error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    if isinstance(error, InvalidRequest):
        yield _bad_request(error.violations)
    if isinstance(error, ModelNotFound | GroupNotFound):
        kind = "model" if isinstance(error, ModelNotFound) else "device group"
        name = error.model if isinstance(error, ModelNotFound) else error.group
        yield error_details_pb2.ResourceInfo(
            resource_type=kind, resource_name=bounded(name, MAX_MESSAGE_BYTES // 4)
        )
    if error.retry_after_s is not None:
        yield error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_s))


def _bad_request(violations: tuple[FieldViolation, ...]) -> error_details_pb2.BadRequest:
    message = error_details_pb2.BadRequest()
    for item in violations:
        message.field_violations.add(
            field=bounded(item.field, MAX_VIOLATIONS_BYTES // 8),
            description=bounded(item.description, MAX_VIOLATIONS_BYTES // 4),
        )
        if message.ByteSize() > MAX_VIOLATIONS_BYTES:
            break
    return message


@dataclass(slots=True)
class _Details:
    """The google.rpc details of a status that we understand."""

    field_violations: tuple[FieldViolation, ...] = ()
    resource_type: str = ""
    resource_name: str = ""
    retry_after_s: float | None = None


def _read_details(metadata: Iterable[tuple[str, str | bytes]]) -> _Details:
    found = _Details()
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            # Details are a courtesy: a proxy that mangles them must not hide the status.
            with suppress(DecodeError):
                for packed in status_pb2.Status.FromString(value).details:
                    _read_detail(found, packed)
    return found


def _read_detail(found: _Details, packed: any_pb2.Any) -> None:
    bad_request = error_details_pb2.BadRequest()
    resource = error_details_pb2.ResourceInfo()
    retry = error_details_pb2.RetryInfo()
    if packed.Unpack(bad_request):
        found.field_violations = tuple(
            FieldViolation(v.field, v.description) for v in bad_request.field_violations
        )
    elif packed.Unpack(resource):
        found.resource_type = resource.resource_type
        found.resource_name = resource.resource_name
    elif packed.Unpack(retry):
        found.retry_after_s = seconds(retry.retry_delay)
