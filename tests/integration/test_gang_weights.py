"""A gang's weights move on all ranks or on none, as its driver sees to."""

import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.core.plan import ParallelConfig
from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.core.weights import WeightMove, WeightOrder, WeightResult
from fabric.engine.executor import HostedModel
from fabric.engine.gang import GangExecutor, GangSettings
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.shard_frames import Begin, Move, Moved, Opened, ShardLink
from fabric.engine.shard_worker import ShardSettings, join_driver
from fabric.kv.transfer import ParkingSpace, WorkerOrders
from fabric.parallel.mesh import Device, Mesh

SECRET, TIMEOUT_S = "secret", 10.0
NUM_RANKS = 2
WORKER = WorkerSettings(
    models=(ModelSettings(model="a", source=""), ModelSettings(model="b", source="")),
    cache_dir=Path(),
    memory_bytes=2**20,
    slab_bytes=2**16,
)


class Rank:
    """A worker that says what a test tells it to; its models grow with the rank."""

    def __init__(self, gang: GangExecutor, rank: int) -> None:
        mesh = Mesh(ParallelConfig(tensor=NUM_RANKS), (Device("h", 0), Device("h", 1)))
        address, rendezvous = gang.address, gang.rendezvous_address
        self._settings = ShardSettings(WORKER, mesh, rank, 1, SECRET, address, rendezvous)
        self._connection = socket.create_connection(address, timeout=TIMEOUT_S)
        self._link = ShardLink(self._connection)
        self.frames: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def say(self, *results: WeightResult) -> None:
        self._link.send(Moved(weights=results))

    def heard(self) -> object:
        return self.frames.get(timeout=TIMEOUT_S)

    def close(self) -> None:
        self._link.close()
        self._thread.join()

    def _listen(self) -> None:
        join_driver(self._link, self._settings)
        scale = 1 + self._settings.rank
        space = ParkingSpace(10 * scale, 0, 1000 * scale)
        models = tuple(
            HostedModel(
                ModelCard(model.model, "", 1, 1, "float32", ""),
                GenerationDefaults(),
                weight_bytes=100_000 * scale,
                host_bytes=100_000 * scale,
                block_bytes=1000 * scale,
                space=space,
            )
            for model in WORKER.models
        )
        self._link.send(Opened(models))
        try:
            while True:
                self.frames.put(self._link.receive())
        except OSError:
            return


@pytest.fixture
def gang() -> Iterator[GangExecutor]:
    started = GangExecutor(GangSettings(WORKER, 1, SECRET, NUM_RANKS, 1, 0))
    yield started
    started.close()


@pytest.fixture
def ranks(gang: GangExecutor) -> Iterator[list[Rank]]:
    """The workers of a gang that has begun."""
    started = [Rank(gang, rank) for rank in range(NUM_RANKS)]
    gang.begin(lambda: False)
    yield started
    for rank in started:
        rank.close()


def order(gang: GangExecutor, number: int, move: WeightMove) -> Move:
    orders = WorkerOrders(weights=(WeightOrder(number, 1, move),))
    gang.move(orders)
    return Move(orders)


def test_memory_is_planned_for_the_rank_that_takes_most_and_cut_alike_on_all(
    gang: GangExecutor, ranks: list[Rank]
) -> None:
    assert [model.card.model for model in gang.models] == ["a", "b"]
    assert {model.weight_bytes for model in gang.models} == {200_000}
    assert {model.block_bytes for model in gang.models} == {2000}
    assert {model.space for model in gang.models} == {ParkingSpace(10, 0, 3000)}
    assert gang.memory.num_slabs == 16
    assert gang.memory.blocks_per_slab == (2**16 // 2048,) * 2
    assert [rank.heard() for rank in ranks] == [Begin(gang.memory)] * NUM_RANKS


@pytest.mark.parametrize(
    ("move", "undoing"),
    [(WeightMove.LOAD, WeightMove.EVICT), (WeightMove.FETCH, WeightMove.DROP)],
)
def test_what_fails_on_one_rank_is_undone_on_the_others(
    gang: GangExecutor, ranks: list[Rank], move: WeightMove, undoing: WeightMove
) -> None:
    ordered = order(gang, 5, move)
    for rank in ranks:
        assert (type(rank.heard()), rank.heard()) == (Begin, ordered)
    ranks[0].say(WeightResult(5))
    ranks[1].say(WeightResult(5, "no memory"))
    assert gang.take_finished(TIMEOUT_S) == [WeightResult(5, "rank 1: no memory")]
    undone = Move(WorkerOrders(weights=(WeightOrder(5, 1, undoing),)))
    assert [rank.heard() for rank in ranks] == [undone] * NUM_RANKS


def test_what_all_ranks_have_done_stays(gang: GangExecutor, ranks: list[Rank]) -> None:
    ordered = order(gang, 5, WeightMove.LOAD)
    for rank in ranks:
        rank.say(WeightResult(5, is_last=False))
        rank.say(WeightResult(5, num_bytes=10))
    finished = gang.take_finished(TIMEOUT_S)
    while len(finished) < 2:
        finished += gang.take_finished(TIMEOUT_S)
    assert finished == [WeightResult(5, is_last=False), WeightResult(5, num_bytes=20)]
    next_order = order(gang, 6, WeightMove.EVICT)
    for rank in ranks:
        assert [type(rank.heard()), rank.heard(), rank.heard()] == [Begin, ordered, next_order]
