"""NcclGroup against a stand-in for cupy's module that moves host memory between threads."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fabric.core.errors import ConfigError, GroupAborted, GroupError, PeerLost
from fabric.parallel.local import LocalGroup, local_groups
from fabric.parallel.nccl import NcclGroup, load_nccl
from fabric.parallel.peers import Peers
from fabric.parallel.rendezvous import Rendezvous
from fabric.parallel.rendezvous_server import RendezvousServer
from tests.unit.parallel_cases import OPERATIONS, apply, cases, expected, is_same

pytestmark = pytest.mark.usefixtures("one_torch_thread")

DTYPES = {1: torch.uint8, 2: torch.int32, 4: torch.int64, 7: torch.float32, 9: torch.bfloat16}
UNIQUE_ID = tuple(range(-64, 64))
STREAM = 1234


def memory(address: int, count: int, kind: int) -> Tensor:
    dtype = DTYPES[kind]
    if count == 0:
        return torch.empty(0, dtype=dtype)
    buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype)


class FakeCommunicator:
    """NCCL on the host; each call is first reported as in progress, as a non-blocking one may."""

    module: "FakeNccl"

    def __init__(self, size: int, unique_id: tuple[int, ...], rank: int) -> None:
        assert unique_id == UNIQUE_ID
        self.group: LocalGroup = self.module.groups[rank]
        assert (self.group.size, self.group.rank) == (size, rank)
        self.num_polls_left = 2
        self.failure: Exception | None = None
        self.is_aborted = False
        raise KeyError(7)

    def check_async_error(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.num_polls_left -= 1
        if self.num_polls_left > 0:
            raise KeyError(7)

    def abort(self) -> None:
        self.is_aborted = True

    def allReduce(self, source, target, count, kind, operation, stream):  # noqa: N802
        assert (source, operation, stream) == (target, 0, STREAM)
        self.group.all_reduce(memory(target, count, kind))
        self.num_polls_left = 3
        raise KeyError(7)

    def allGather(self, source, target, count, kind, stream):  # noqa: N802
        gathered = self.group.all_gather(memory(source, count, kind))
        memory(target, count * self.group.size, kind).copy_(gathered)

    def reduceScatter(self, source, target, count, kind, operation, stream):  # noqa: N802
        assert operation == 0
        total = self.group.reduce_scatter(memory(source, count * self.group.size, kind))
        memory(target, count, kind).copy_(total)

    def broadcast(self, source, target, count, kind, root, stream):
        assert source == target
        self.group.broadcast(memory(target, count, kind), root)

    def send(self, source, count, kind, peer, stream):
        self.group._table.mail[self.group.rank, peer].put(memory(source, count, kind).clone())

    def recv(self, target, count, kind, peer, stream):
        receive = self.group._table.mail[peer, self.group.rank].get
        memory(target, count, kind).copy_(receive(timeout=10))


class FakeNccl:
    def __init__(self, size: int) -> None:
        self.groups = local_groups(size)
        self.NcclCommunicator = type("Communicator", (FakeCommunicator,), {"module": self})

    def get_unique_id(self) -> tuple[int, ...]:
        return UNIQUE_ID

    def groupStart(self) -> None:  # noqa: N802
        pass

    def groupEnd(self) -> None:  # noqa: N802
        pass


@pytest.fixture
def server() -> Iterator[RendezvousServer]:
    with RendezvousServer(silence_s=30.0) as running:
        yield running


@pytest.fixture
def pair(server: RendezvousServer) -> Iterator[list[NcclGroup]]:
    module = FakeNccl(2)
    connections = [Rendezvous(server.address, epoch=0) for _ in range(2)]

    def form(rank: int) -> NcclGroup:
        peers = Peers(connections[rank], "pair", ("rank-0", "rank-1"))
        return NcclGroup(peers, rank, nccl=module, stream=lambda: STREAM)

    with ThreadPoolExecutor(2) as threads:
        groups = list(threads.map(form, range(2)))
    yield groups
    for group, connection in zip(groups, connections, strict=True):
        group.close()
        connection.close()


def on_all(groups: list[NcclGroup], work: Callable[[NcclGroup], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(work, groups))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nccl_is_called_with_what_each_operation_needs(pair: list[NcclGroup], operation: str):
    for case in cases(operation):
        results = on_all(pair, lambda group, case=case: apply(group, operation, *case))
        for rank, result in enumerate(results):
            assert is_same(result, expected(operation, *case, 2, rank)), case


def test_an_error_that_nccl_reports_aborts_the_communicator(pair: list[NcclGroup]):
    pair[0]._communicator.failure = RuntimeError("unhandled system error")
    with pytest.raises(GroupError, match="unhandled system error"):
        on_all(pair, lambda group: group.all_reduce(torch.ones(3)))
    assert pair[0]._communicator.is_aborted
    with pytest.raises(GroupAborted):
        pair[0].all_reduce(torch.ones(3))


def test_waiting_ends_when_a_rank_is_lost(server: RendezvousServer, pair: list[NcclGroup]):
    with Rendezvous(server.address, epoch=0) as dying:
        dying.beat("rank-1")
    with pytest.raises(PeerLost) as caught:
        pair[0]._wait(lambda: False)
    assert caught.value.rank == 1
    assert pair[0]._communicator.is_aborted


def test_waiting_ends_when_another_rank_aborts(pair: list[NcclGroup]):
    pair[1].abort()
    with pytest.raises(GroupAborted, match="rank 1"):
        pair[0]._wait(lambda: False)


def test_a_machine_without_cupy_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setenv("NCCL_COMM_BLOCKING", "0")
    with pytest.raises(ConfigError, match="need cupy with NCCL"):
        load_nccl()
