"""Groups of threads, and groups of one."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fabric.core.errors import GroupAborted, GroupError, GroupTimeout
from fabric.parallel.group import Group, SoloGroup
from fabric.parallel.local import local_groups
from fabric.parallel.operands import OperandError
from tests.unit.parallel_cases import OPERATIONS, apply, cases, exchange, expected, is_same

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def on_all(groups: list[Any], work: Callable[[Group], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(work, groups))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_threads_compute_what_plain_arithmetic_does(operation: str, size: int):
    groups = local_groups(size)
    for case in cases(operation):
        results = on_all(groups, lambda group, case=case: apply(group, operation, *case))
        for rank, result in enumerate(results):
            assert is_same(result, expected(operation, *case, size, rank)), case


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o != "exchange"])
def test_a_group_of_one_returns_what_it_is_given(operation: str):
    for case in cases(operation):
        assert is_same(apply(SoloGroup(), operation, *case), expected(operation, *case, 1, 0))


def test_a_group_of_one_copies_nothing():
    x = torch.ones(4)
    group = SoloGroup()
    assert group.all_gather(x) is group.reduce_scatter(x) is group.all_to_all(x) is x


def test_traffic_counts_calls_and_bytes_of_each_operation():
    groups = local_groups(2)

    def work(group: Group) -> None:
        group.all_reduce(torch.zeros(10))
        group.all_reduce(torch.zeros(3, dtype=torch.bfloat16))
        group.all_gather(torch.zeros(5, dtype=torch.int64))
        exchange(group, torch.zeros(2))
        group.barrier()

    on_all(groups, work)
    for group in groups:
        calls = {"all_reduce": 2, "all_gather": 1, "send": 1, "recv": 1, "barrier": 1}
        assert group.traffic.calls == calls
        assert group.traffic.num_bytes == {"all_reduce": 46, "all_gather": 40, "send": 8, "recv": 8}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.all_reduce(torch.zeros(4, 4).t()[:2]), "must be contiguous"),
        (lambda g: g.all_reduce(torch.zeros(4, dtype=torch.float64)), "float64"),
        (lambda g: g.reduce_scatter(torch.zeros(3)), "2 equal parts"),
        (lambda g: g.all_to_all(torch.zeros(3, 2)), "2 equal parts"),
        (lambda g: g.all_gather(torch.zeros(())), "dimension 0"),
        (lambda g: g.broadcast(torch.zeros(1), 2), "rank 2 is not one of the group's 2"),
        (lambda g: g.send(torch.zeros(1), 0), "itself"),
        (lambda g: g.recv(torch.zeros(1), -1), "rank -1"),
    ],
)
def test_an_operand_that_does_not_fit_is_named_before_anybody_waits(
    call: Callable[[Group], None], message: str
):
    with pytest.raises(OperandError, match=message):
        call(local_groups(2)[0])


def test_abort_wakes_whoever_waits_in_a_collective_or_for_a_message():
    first, second, third = local_groups(3)
    errors: list[BaseException] = []

    def wait(work: Callable[[], None]) -> None:
        try:
            work()
        except GroupError as error:
            errors.append(error)

    waits = (first.barrier, lambda: second.recv(torch.zeros(1), 2))
    threads = [threading.Thread(target=wait, args=(work,)) for work in waits]
    for thread in threads:
        thread.start()
    third.abort()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [GroupAborted, GroupAborted]
    with pytest.raises(GroupAborted):
        third.barrier()


def test_a_rank_that_does_not_come_is_a_timeout():
    first, _ = local_groups(2, timeout_s=0.05)
    with pytest.raises(GroupTimeout):
        first.recv(torch.zeros(1), 1)
    with pytest.raises(GroupTimeout):
        first.barrier()


def test_ranks_that_call_different_operations_are_told_so():
    def work(group: Group) -> str:
        with pytest.raises(GroupError, match="calls"):
            group.all_reduce(torch.zeros(1 + group.rank))
        return "told"

    assert on_all(local_groups(2), work) == ["told", "told"]
