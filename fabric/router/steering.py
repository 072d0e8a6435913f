"""Asks device groups about their requests, and has them schedule by another policy."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

from fabric.core.errors import (
    ConfigError,
    FieldViolation,
    GroupNotFound,
    InvalidRequest,
    RequestError,
)
from fabric.core.status import Explanation, PolicyChange, RequestStatus
from fabric.router.catalog import Catalog
from fabric.rpc.frames import Answer, Explain, Explained, PolicySet, Question, SetPolicy
from fabric.scheduler.policies import PolicyConfig

DEFAULT_LIMIT = 1000
MAX_LIMIT = 4096
MAX_ID_CHARS = 128
MAX_NUMBER = 1e6
# Quanta must grow from queue to queue; the other numbers may be 0.
_LEAST = {"quantum_s": 1e-6, "quantum_ratio": 1.01}


def named_groups(catalog: Catalog, group: str) -> tuple[str, ...]:
    """The group of that name; all of them if it is empty.

    Raises:
        GroupNotFound: There is none of that name.
    """
    if group and group not in catalog.group_names:
        raise GroupNotFound(group, catalog.group_names)
    return (group,) if group else catalog.group_names


async def explain_requests(
    catalog: Catalog, group: str, request_id: str, limit: int
) -> Explanation:
    """Where the requests of one group, or of all, are.

    Raises:
        GroupNotFound: There is none of that name.
        InvalidRequest: The limit is out of bounds, or no id can be so long.
        RequestError: The named group doesn't answer.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest.of("limit", f"is {limit}; allowed: 1 to {MAX_LIMIT}")
    if len(request_id) > MAX_ID_CHARS:
        raise InvalidRequest.of("request_id", f"has more than {MAX_ID_CHARS} characters")
    names = named_groups(catalog, group)
    answers = await _ask(catalog, names, lambda number: Explain(number, request_id, limit))
    requests: list[RequestStatus] = []
    num_omitted, unanswered = 0, []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, Explained):
            requests += (_in_group(status, name) for status in answer.requests)
            num_omitted += answer.num_omitted
        elif group and isinstance(answer, RequestError):
            raise answer
        else:
            unanswered.append(name)
    num_omitted += max(0, len(requests) - limit)
    return Explanation(tuple(requests[:limit]), num_omitted, tuple(unanswered))


async def change_policy(
    catalog: Catalog, group: str, policy: str, numbers: Mapping[str, float]
) -> tuple[PolicyChange, ...]:
    """Switch the policy of one group, or of all; what each of them did.

    Raises:
        GroupNotFound: There is none of that name.
        InvalidRequest: There is no such policy, or a number is wrong.
        RequestError: The named group doesn't change.
    """
    check_policy(policy, numbers)
    names = named_groups(catalog, group)
    before = {name: catalog.link(name).load.policy for name in names}
    given = tuple(sorted(numbers.items()))
    answers = await _ask(catalog, names, lambda number: SetPolicy(number, policy, given))
    changes = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, PolicySet):
            changes.append(PolicyChange(name, answer.before, answer.after))
        elif group and isinstance(answer, RequestError):
            raise answer
        else:
            changes.append(PolicyChange(name, before[name], before[name], str(answer)))
    return tuple(changes)


def check_policy(policy: str, numbers: Mapping[str, float]) -> None:
    """Refuse a policy that there isn't, and numbers that no policy goes by.

    Raises:
        InvalidRequest: Names what is wrong and what is allowed.
    """
    try:
        PolicyConfig(policy)  # type: ignore[arg-type]
    except ConfigError as error:
        raise InvalidRequest.of("policy", error.message) from error
    known = [field.name for field in fields(PolicyConfig) if field.name != "name"]
    violations = [
        FieldViolation(f"numbers.{name}", f"is not a number of policies: {', '.join(known)}")
        for name in numbers
        if name not in known
    ]
    for name, number in numbers.items():
        least = _LEAST.get(name, 0.0)
        if not least <= number <= MAX_NUMBER:
            allowed = f"{least:g} to {MAX_NUMBER:g}"
            violations.append(FieldViolation(f"numbers.{name}", f"is {number}; allowed: {allowed}"))
    if violations:
        raise InvalidRequest(violations)


async def _ask(
    catalog: Catalog, names: tuple[str, ...], make: Callable[[int], Question]
) -> list[Answer | RequestError]:
    async def ask(name: str) -> Answer | RequestError:
        try:
            return await catalog.link(name).ask(make)
        except RequestError as error:
            return error

    return await asyncio.gather(*(ask(name) for name in names))


def _in_group(status: RequestStatus, group: str) -> RequestStatus:
    return replace(status, timing=replace(status.timing, group=group))
