"""Weights move one after the other, and whatever goes wrong with one move is its result."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from fabric.core.errors import SourceError
from fabric.core.request import ModelCard
from fabric.core.weights import WeightMove, WeightOrder, WeightResult
from fabric.engine.held_weights import HeldWeights
from fabric.engine.weight_mover import WeightMover

TIMEOUT_S = 10.0


class ScriptedWeights:
    """Weights that do nothing but note what is asked of them; ``fails`` is raised instead."""

    def __init__(self) -> None:
        self.card = ModelCard("model", "", 1, 1, "float32", "")
        self.asked: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.may_load = threading.Event()
        self.may_load.set()

    def begin_load(self) -> None:
        self._note("begin")

    def load(self, on_started: Callable[[], None]) -> int:
        assert self.may_load.wait(TIMEOUT_S)
        self._note("load")
        on_started()
        return 7

    def fetch(self) -> int:
        self._note("fetch")
        return 5

    def evict(self) -> None:
        self._note("evict")

    def drop(self) -> None:
        self._note("drop")

    def cancel(self) -> None:
        self.may_load.set()

    def close(self) -> None:
        self._note("close")

    def _note(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]
        self.asked.append(what)


Results = queue.SimpleQueue[WeightResult]


@pytest.fixture
def weights() -> ScriptedWeights:
    return ScriptedWeights()


@pytest.fixture
def results() -> Results:
    return queue.SimpleQueue()


@pytest.fixture
def mover(weights: ScriptedWeights, results: Results) -> Iterator[WeightMover]:
    started = WeightMover([cast(HeldWeights, weights)], results.put)
    yield started
    started.close()


def order(mover: WeightMover, *moves: WeightMove) -> None:
    for number, move in enumerate(moves):
        mover.move(WeightOrder(number, 0, move))


def take(results: Results, count: int) -> list[tuple[int, str, int, bool]]:
    taken = [results.get(timeout=TIMEOUT_S) for _ in range(count)]
    return [(result.number, result.error, result.num_bytes, result.is_last) for result in taken]


def test_moves_are_made_in_their_order_and_a_load_says_when_it_has_begun(
    mover: WeightMover, weights: ScriptedWeights, results: Results
) -> None:
    order(mover, WeightMove.FETCH, WeightMove.LOAD)
    assert take(results, 3) == [(0, "", 5, True), (1, "", 0, False), (1, "", 7, True)]
    assert sorted(weights.asked) == ["begin", "fetch", "load"]


def test_memory_is_freed_at_once_and_without_a_result(
    mover: WeightMover, weights: ScriptedWeights, results: Results
) -> None:
    order(mover, WeightMove.EVICT, WeightMove.DROP)
    assert weights.asked == ["evict", "drop"]
    assert results.empty()


@pytest.mark.parametrize("what", ["begin", "load"])
def test_a_load_that_fails_says_why_once_and_the_next_move_goes_on(
    mover: WeightMover,
    weights: ScriptedWeights,
    results: Results,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights.fails[what] = SourceError("no room")
    order(mover, WeightMove.LOAD, WeightMove.FETCH)
    assert take(results, 2) == [(0, "no room", 0, True), (1, "", 5, True)]
    assert caplog.messages == ["load of model failed: no room"]


def test_a_defect_of_ours_is_the_result_of_its_move_alone(
    mover: WeightMover, weights: ScriptedWeights, results: Results
) -> None:
    weights.fails["fetch"] = KeyError("layer 3")
    order(mover, WeightMove.FETCH, WeightMove.LOAD)
    assert take(results, 3) == [
        (0, "KeyError: 'layer 3'", 0, True),
        (1, "", 0, False),
        (1, "", 7, True),
    ]


def test_close_gives_up_the_move_that_runs_and_drops_those_that_wait(
    weights: ScriptedWeights, results: Results
) -> None:
    weights.may_load.clear()
    before = set(threading.enumerate())
    mover = WeightMover([cast(HeldWeights, weights)], results.put)
    order(mover, WeightMove.LOAD, WeightMove.FETCH)
    mover.close()
    assert "fetch" not in weights.asked
    assert weights.asked[-1] == "close"
    assert set(threading.enumerate()) <= before
