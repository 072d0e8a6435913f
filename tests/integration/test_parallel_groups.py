"""Groups of processes compute what plain arithmetic does, bitwise, on every rank, every time."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fabric.parallel.group import Group
from fabric.parallel.shm import ShmSettings
from tests.integration.parallel_world import LAYOUTS, SETTINGS, World, world
from tests.unit.parallel_cases import (
    OPERATIONS,
    SUMS,
    apply,
    cases,
    contribution,
    expected,
    is_same,
    plain_sum,
)

pytestmark = [pytest.mark.dist, pytest.mark.usefixtures("one_torch_thread")]

FLAT = ("shm", "gloo")


@pytest.fixture(scope="module", params=[2, 3, 4])
def ranks(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(request.param) as processes:
        yield processes


def apply_all(group: Group, operation: str) -> list[Tensor]:
    return [apply(group, operation, *case) for case in cases(operation)]


def repeat_sums(group: Group, num_repeats: int) -> bool:
    """Whether sums of odd sizes come out the same each time."""
    firsts = apply_all(group, "all_reduce")
    return all(
        is_same(a, b)
        for _ in range(num_repeats)
        for a, b in zip(firsts, apply_all(group, "all_reduce"), strict=True)
    )


def talk(group: Group) -> tuple[dict[str, int], dict[str, int]]:
    """Run one of each operation; return the traffic."""
    x = torch.zeros(group.size * 3)
    group.all_reduce(x)
    group.reduce_scatter(x)
    group.all_gather(x)
    group.all_to_all(x)
    group.broadcast(x, 1)
    group.barrier()
    if group.rank == 0:
        group.send(x[:2], 1)
    if group.rank == 1:
        group.recv(x[:2], 0)
    return dict(group.traffic.calls), dict(group.traffic.num_bytes)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("layout", FLAT)
def test_processes_compute_what_plain_arithmetic_does(ranks: World, layout: str, operation: str):
    ranks.form(layout)
    size = len(ranks.processes)
    for rank, results in enumerate(ranks.run(apply_all, operation)):
        for case, result in zip(cases(operation), results, strict=True):
            assert is_same(result, expected(operation, *case, size, rank)), case


@pytest.mark.parametrize("operation", OPERATIONS)
def test_ranks_on_hosts_compute_what_plain_arithmetic_does(ranks: World, operation: str):
    ranks.form("hierarchical")
    size = len(ranks.processes)
    for rank, results in enumerate(ranks.run(apply_all, operation)):
        for (dtype, shape), result in zip(cases(operation), results, strict=True):
            want = expected(operation, dtype, shape, size, rank)
            if operation in SUMS:
                want = sum_by_hosts(operation, dtype, shape, size, rank)
            assert is_same(result, want), (dtype, shape)


def sum_by_hosts(
    operation: str, dtype: torch.dtype, shape: tuple[int, int], size: int, rank: int
) -> Tensor:
    """The sum over hosts, that of each host first; bf16 is rounded once, at the end."""
    given = [contribution(operation, dtype, shape, size, r) for r in range(size)]
    if dtype is torch.bfloat16:
        given = [x.float() for x in given]
    hosts = LAYOUTS["hierarchical"](size)
    on_hosts = [
        plain_sum([x for x, other in zip(given, hosts, strict=True) if other == host])
        for host in dict.fromkeys(hosts)
    ]
    total = plain_sum(on_hosts).to(dtype)
    return total if operation == "all_reduce" else total.chunk(size)[rank]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_bitwise_the_same_on_all_ranks_and_in_every_run(ranks: World, layout: str):
    ranks.form(layout)
    first, *others = ranks.run(apply_all, "all_reduce")
    for other in others:
        assert all(is_same(a, b) for a, b in zip(first, other, strict=True))
    assert ranks.run(repeat_sums, 5) == [True] * len(ranks.processes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_traffic_is_what_was_handed_over(ranks: World, layout: str):
    ranks.form(layout)
    for rank, (calls, num_bytes) in enumerate(ranks.run(talk)):
        collectives = dict.fromkeys(
            ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast"), 1
        )
        messages = {0: {"send": 1}, 1: {"recv": 1}}.get(rank, {})
        x_bytes = len(ranks.processes) * 3 * 4
        assert calls == collectives | {"barrier": 1} | messages
        assert num_bytes == dict.fromkeys(collectives, x_bytes) | dict.fromkeys(messages, 8)


@pytest.mark.parametrize("spin_s", [0.0, 10e-6])
def test_small_slots_and_rings_change_nothing(ranks: World, spin_s: float):
    small = ShmSettings(spin_s=spin_s, slot_bytes=4096, ring_bytes=4096, one_phase_bytes=256)
    ranks.form("shm", replace(SETTINGS, shm=small))
    size = len(ranks.processes)
    for operation in OPERATIONS:
        for rank, results in enumerate(ranks.run(apply_all, operation)):
            for case, result in zip(cases(operation), results, strict=True):
                assert is_same(result, expected(operation, *case, size, rank)), (operation, case)


def test_nothing_is_left_in_shared_memory_nor_ever_was(ranks: World):
    before = set(os.listdir("/dev/shm"))
    ranks.form("shm")
    assert {name for name in os.listdir("/dev/shm") if name not in before} == set()
