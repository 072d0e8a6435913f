"""Ranks die, freeze, give up or don't come: the others are told in time, and go on without them."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from fabric.core.errors import StaleEpoch
from fabric.parallel.formation import join
from fabric.parallel.group import Group
from fabric.parallel.rendezvous import Rendezvous
from tests.integration.parallel_world import LAYOUTS, SETTINGS, World, cpu_s, world

pytestmark = pytest.mark.dist

PROMPT_S = 2.0
FOREVER = replace(SETTINGS, timeout_s=None)


@pytest.fixture
def trio() -> Iterator[World]:
    with world(3) as processes:
        yield processes


def add_up(group: Group, value: float) -> float:
    x = torch.full((5,), value)
    group.all_reduce(x)
    return x[0].item()


def receive(group: Group, source: int) -> None:
    group.recv(torch.zeros(3), source)


def give_up(group: Group) -> None:
    group.abort()


def until_blocked(ranks: World, numbers: list[int]) -> None:
    """Wait until processes do nothing any more."""
    pids = [ranks.processes[number].pid for number in numbers]
    used = None
    while used != (used := [cpu_s(pid) for pid in pids]):
        time.sleep(0.1)


def test_prompt_is_shorter_than_the_tests_patience():
    assert SETTINGS.timeout_s is not None
    assert SETTINGS.timeout_s > 2 * PROMPT_S


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_survivors_of_a_lost_rank_are_told_and_form_a_new_group(
    trio: World, layout: str, number: int
):
    trio.form(layout, FOREVER)
    assert trio.run(add_up, 1.0) == [3.0] * 3
    trio.start(add_up, 1.0, ranks=[0, 1])
    until_blocked(trio, [0, 1])
    start = time.monotonic()
    trio.processes[2].kill(number)
    failures = trio.results([0, 1])
    assert time.monotonic() - start < PROMPT_S
    assert failures[0].kind == "PeerLost"
    assert failures[0].rank == 2
    # On another host only the leaders see who it was.
    assert failures[1].kind == "PeerLost" or layout == "hierarchical"
    lost = trio.processes.pop()
    trio.form(layout, FOREVER)
    assert trio.run(add_up, 2.0) == [4.0] * 2
    lost.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_receiver_is_told_that_its_sender_is_lost(trio: World, layout: str, number: int):
    trio.form(layout, FOREVER)
    trio.start(receive, 2, ranks=[0])
    until_blocked(trio, [0])
    start = time.monotonic()
    trio.processes[2].kill(number)
    (failure,) = trio.results([0])
    assert time.monotonic() - start < PROMPT_S
    assert (failure.kind, failure.rank) == ("PeerLost", 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_abort_wakes_everybody_and_is_final(trio: World, layout: str):
    trio.form(layout, FOREVER)
    trio.start(add_up, 1.0, ranks=[0])
    trio.start(receive, 0, ranks=[1])
    until_blocked(trio, [0, 1])
    start = time.monotonic()
    trio.start(give_up, ranks=[2])
    failures = trio.results([0, 1])
    assert time.monotonic() - start < PROMPT_S
    assert trio.results([2]) == [None]
    failures += trio.run(add_up, 1.0)
    assert {failure.kind for failure in failures} == {"GroupAborted"}


def test_a_blocked_rank_can_be_interrupted(trio: World):
    trio.form("shm", FOREVER)
    trio.start(add_up, 1.0, ranks=[0, 1])
    until_blocked(trio, [0, 1])
    trio.processes[0].kill(signal.SIGINT)
    trio.processes[0].process.join(PROMPT_S)
    assert trio.processes[0].process.exitcode is not None
    assert trio.results([1])[0].kind == "GroupAborted"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_that_lives_but_does_not_come_is_a_timeout(trio: World, layout: str):
    trio.form(layout, replace(SETTINGS, timeout_s=0.5))
    trio.start(add_up, 1.0, ranks=[0, 1])
    kinds = [failure.kind for failure in trio.results([0, 1])]
    assert "GroupTimeout" in kinds
    assert set(kinds) <= {"GroupTimeout", "GroupAborted"}


def mismatch(group: Group) -> None:
    group.all_reduce(torch.zeros(10 + group.rank))


def test_ranks_that_share_memory_notice_that_their_calls_differ(trio: World):
    trio.form("shm")
    failures = trio.run(mismatch)
    assert {failure.kind for failure in failures} == {"GroupError"}
    assert "another size" in failures[0].message


def test_a_rank_of_an_older_epoch_cannot_join(trio: World):
    late = Rendezvous(trio.server.address, epoch=0)
    trio.form("shm")
    with pytest.raises(StaleEpoch):
        join(late, 2)
    late.close()
    assert trio.run(add_up, 1.0) == [3.0] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_that_wait_use_no_processor(trio: World, layout: str):
    trio.form(layout, FOREVER)
    assert trio.run(add_up, 1.0) == [3.0] * 3
    trio.start(add_up, 1.0, ranks=[0, 1])
    until_blocked(trio, [0, 1])
    pids = [trio.processes[rank].pid for rank in (0, 1)]
    start, used = time.monotonic(), [cpu_s(pid) for pid in pids]
    time.sleep(1.5)
    shares = [
        (cpu_s(pid) - before) / (time.monotonic() - start)
        for pid, before in zip(pids, used, strict=True)
    ]
    assert max(shares) < 0.02
    trio.start(add_up, 1.0, ranks=[2])
    assert trio.results() == [3.0] * 3


def test_a_crash_leaves_nothing_in_shared_memory():
    before = set(os.listdir("/dev/shm"))
    with world(2) as pair:
        pair.form("shm")
        for process in pair.processes:
            process.kill()
    assert set(os.listdir("/dev/shm")) <= before
