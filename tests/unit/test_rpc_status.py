"""Errors survive the way over gRPC, with their details."""

import grpc
import pytest
from google.rpc import status_pb2

from fabric.core import errors
from fabric.core.errors import FieldViolation, InvalidRequest, ModelNotFound
from fabric.rpc.status import DETAILS_KEY, from_rpc_error, to_status


class FailedCall(grpc.RpcError):
    def __init__(self, code, message, trailing):
        self._parts = code, message, trailing

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest([FieldViolation("a.b", "is bad")]), grpc.StatusCode.INVALID_ARGUMENT),
        (ModelNotFound("m", ("x", "y")), grpc.StatusCode.NOT_FOUND),
        (errors.GroupNotFound("g", ("x", "y")), grpc.StatusCode.NOT_FOUND),
        (errors.Unauthenticated("who?"), grpc.StatusCode.UNAUTHENTICATED),
        (errors.Overloaded("full", 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.Unavailable("gone", 1.0), grpc.StatusCode.UNAVAILABLE),
        (errors.Unavailable("gone"), grpc.StatusCode.UNAVAILABLE),
        (errors.DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.RequestCancelled("left"), grpc.StatusCode.CANCELLED),
        (errors.InternalError("a bug"), grpc.StatusCode.INTERNAL),
    ],
)
def test_an_error_comes_back_as_itself(error, code):
    sent = to_status(error)
    found = from_rpc_error(FailedCall(*sent))
    assert sent[0] == code
    assert type(found) is type(error)
    assert found.message == error.message
    assert found.retry_after_s == error.retry_after_s
    assert getattr(found, "violations", None) == getattr(error, "violations", None)
    assert getattr(found, "model", None) == getattr(error, "model", None)
    assert getattr(found, "group", None) == getattr(error, "group", None)


def test_an_error_info_names_the_class_and_the_domain():
    _, _, ((key, raw),) = to_status(errors.Overloaded("full"))
    status = status_pb2.Status.FromString(raw)
    assert key == DETAILS_KEY
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert b"Overloaded" in status.details[0].value
    assert b"llm-fabric" in status.details[0].value


def test_a_huge_error_still_fits_the_trailers():
    violations = [FieldViolation(f"field[{i}]", "ö" * 5000) for i in range(1000)]
    _, message, ((_, raw),) = to_status(InvalidRequest(violations))
    percent_encoded, base64 = 3 * len(message.encode()), len(raw) * 4 // 3
    assert percent_encoded + base64 < 8 * 1024


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.NOT_FOUND, errors.InternalError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.Unauthenticated),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
    ],
)
def test_a_foreign_status_has_its_nearest_error(code, kind):
    found = from_rpc_error(FailedCall(code, "why", ((DETAILS_KEY, b"\xff\xff"),)))
    assert type(found) is kind
    assert "why" in found.message
