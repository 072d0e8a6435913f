"""What every RPC of ours needs around its method: parsing, typed errors to statuses, no leaks."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from fabric.core.errors import FabricError, InternalError, InvalidRequest, RequestError
from fabric.rpc.status import to_status

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Asked = TypeVar("Asked", bound=Message)
Method = Callable[[Asked, Context], Awaitable[Message | None]]


def unary(kind: type[Asked], method: Method[Asked]) -> "grpc.RpcMethodHandler[Any, Any]":
    """A handler for a method that takes a message of ``kind`` and returns its answer.

    Messages are parsed here, not by grpc, which would call a malformed one INTERNAL.
    """

    async def handle(raw: bytes, context: Context) -> bytes:
        answer = await _guarded(kind, method, raw, context)
        return answer.SerializeToString() if answer is not None else b""

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(kind: type[Asked], method: Method[Asked]) -> "grpc.RpcMethodHandler[Any, Any]":
    """A handler for a method that takes a message of ``kind`` and writes serialized answers."""

    async def handle(raw: bytes, context: Context) -> None:
        await _guarded(kind, method, raw, context)

    return grpc.unary_stream_rpc_method_handler(handle)


async def _guarded(
    kind: type[Asked], method: Method[Asked], raw: bytes, context: Context
) -> Message | None:
    try:
        return await method(_parsed(kind, raw), context)
    except RequestError as error:
        failed = error
    except FabricError as error:
        logger.exception("%s failed", kind.__name__)
        failed = InternalError(error.message)
    except grpc.aio.AbortError:
        raise
    except Exception:
        request_id = request_id_of(context)
        logger.exception("%s failed, x-request-id %r", kind.__name__, request_id)
        failed = InternalError(f"an error of ours; look for x-request-id {request_id!r} in the log")
    code, message, trailing = to_status(failed)
    return await context.abort(code, message, trailing)


def request_id_of(context: Context) -> str:
    """The x-request-id of the call's metadata; empty if there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str):
            return value
    return ""


def _parsed(kind: type[Asked], raw: bytes) -> Asked:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest.of("request", f"is no {kind.__name__}: {error}") from error
