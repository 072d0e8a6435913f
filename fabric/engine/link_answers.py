"""How a device group answers what routers ask about its requests, its policy and its weights."""

import asyncio
import logging
import re
from dataclasses import replace

from fabric.core.errors import (
    ConfigError,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    RequestError,
)
from fabric.core.status import RequestStatus
from fabric.engine.group_engine import GroupEngine
from fabric.rpc.failures import failure_of
from fabric.rpc.frames import (
    Answer,
    Explain,
    Explained,
    PolicySet,
    Question,
    Refused,
    ResidenceSet,
    SetPolicy,
    SetResidence,
)
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
            case SetResidence():
                return await _set_residence(question, engine, epoch)
    except RequestError as error:
        refusal = error
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
    try:
        config = PolicyConfig(question.policy, **dict(question.numbers))  # type: ignore[arg-type]
    except (ConfigError, TypeError) as error:
        # The router checks policies first: this one is of another version than we are.
        raise InvalidRequest.of("policy", str(error)) from error
    before, after = await asyncio.wrap_future(engine.set_policy(config))
    return PolicySet(epoch, question.question, before, after)


async def _set_residence(question: SetResidence, engine: GroupEngine, epoch: int) -> ResidenceSet:
    hosted = tuple(served.card.model for served in engine.served())
    if question.model not in hosted:
        raise ModelNotFound(question.model, hosted)
    wish = engine.set_residence(question.model, question.state, question.pinned)
    load = await asyncio.wrap_future(wish)
    return ResidenceSet(
        epoch, question.question, load.state, load.pinned, load.num_loads, load.problem
    )


def _place(status: RequestStatus) -> tuple[float, ...]:
    return status.rank
