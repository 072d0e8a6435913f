"""How a device group answers what routers ask about its requests and its policy."""

import asyncio
import logging
import re
from dataclasses import replace

from fabric.core.errors import ConfigError, InternalError, InvalidRequest, RequestError
from fabric.core.status import RequestStatus
from fabric.engine.group_engine import GroupEngine
from fabric.rpc.failures import failure_of
from fabric.rpc.frames import Answer, Explain, Explained, PolicySet, Question, Refused, SetPolicy
from fabric.scheduler.policies import PolicyConfig

logger = logging.getLogger(__name__)

# As engine_id puts it before a client's id, also where one request is named in another's status.
_PREFIX = re.compile(r"(?<!\S)\d+\.\d+:")


def engine_id(session: int, stream: int, request_id: str) -> str:
    """What the engine calls a request: a client's id may repeat, the engine's may not."""
    return f"{session}.{stream}:{request_id}"


def in_clients_words(status: RequestStatus) -> RequestStatus:
    """The status with the ids that clients know."""
    return replace(
        status,
        request_id=_PREFIX.sub("", status.request_id, count=1),
        last_preemption=_PREFIX.sub("", status.last_preemption, count=1),
    )


async def answer_to(question: Question, engine: GroupEngine, epoch: int) -> Answer:
    """Put a question to the engine, and wait for its thread to come round to it."""
    try:
        match question:
            case Explain():
                return await _explain(question, engine, epoch)
            case SetPolicy():
                return await _set_policy(question, engine, epoch)
    except RequestError as error:
        refusal = error
    except (ConfigError, TypeError) as error:
        # The router checks policies first: this one is of another version than we are.
        refusal = InvalidRequest.of("policy", str(error))
    except Exception:
        logger.exception("%s failed", type(question).__name__)
        refusal = InternalError("an error of ours; see the device group's log")
    return Refused(epoch, question.question, failure_of(refusal))


async def _explain(question: Explain, engine: GroupEngine, epoch: int) -> Explained:
    statuses = await asyncio.wrap_future(engine.explain())
    named = [in_clients_words(status) for status in statuses]
    if question.request_id:
        named = [status for status in named if status.request_id == question.request_id]
    named.sort(key=_place)
    told = tuple(named[: question.limit])
    return Explained(epoch, question.question, told, len(named) - len(told))


async def _set_policy(question: SetPolicy, engine: GroupEngine, epoch: int) -> PolicySet:
    config = PolicyConfig(question.policy, **dict(question.numbers))  # type: ignore[arg-type]
    before, after = await asyncio.wrap_future(engine.set_policy(config))
    return PolicySet(epoch, question.question, before, after)


def _place(status: RequestStatus) -> tuple[float, ...]:
    return status.rank
