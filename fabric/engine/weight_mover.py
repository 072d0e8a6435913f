"""Brings models' weights into host memory and onto the device on a thread of its own."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fabric.core.errors import FabricError
from fabric.core.weights import WeightMove, WeightOrder, WeightResult
from fabric.engine.copy_pace import give_way
from fabric.engine.held_weights import HeldWeights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Move:
    order: WeightOrder
    weights: HeldWeights


class WeightMover:
    """Fetches and loads weights one after the other, beside iterations; frees them at once.

    ``move`` belongs to the thread that runs iterations, and never waits. ``on_moved`` is called
    on the thread that moves, or on the caller's if a move can't begin.
    """

    def __init__(
        self, models: Sequence[HeldWeights], on_moved: Callable[[WeightResult], None]
    ) -> None:
        self._models = models
        self._on_moved = on_moved
        self._moves: queue.SimpleQueue[_Move | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="weights", daemon=True)
        self._thread.start()

    def move(self, order: WeightOrder) -> None:
        """Free memory, or begin what takes long; iterations may follow a LOAD at once."""
        weights = self._models[order.model]
        match order.move:
            case WeightMove.EVICT:
                weights.evict()
            case WeightMove.DROP:
                weights.drop()
            case WeightMove.FETCH:
                self._moves.put(_Move(order, weights))
            case WeightMove.LOAD:
                try:
                    weights.begin_load()
                except FabricError as error:
                    _warn(order, weights, error)
                    self._on_moved(WeightResult(order.number, error.message))
                else:
                    self._moves.put(_Move(order, weights))

    def close(self) -> None:
        """Drop the moves that wait, give up the one that runs, and free all memory."""
        self._closing.set()
        for weights in self._models:
            weights.cancel()
        self._moves.put(None)
        self._thread.join()
        for weights in self._models:
            weights.close()

    def _work(self) -> None:
        give_way()
        while (move := self._moves.get()) is not None and not self._closing.is_set():
            self._on_moved(self._carry_out(move))

    def _carry_out(self, move: _Move) -> WeightResult:
        order, start_s = move.order, time.perf_counter()
        try:
            num_bytes = self._run(move, start_s)
        except (FabricError, OSError) as error:
            _warn(order, move.weights, error)
            problem = error.message if isinstance(error, FabricError) else str(error)
        except Exception as error:
            # The thread's edge: what we did wrong with one model must not stop the others.
            logger.exception("%s of %s failed", order.move, move.weights.card.model)
            problem = f"{type(error).__name__}: {error}"
        else:
            seconds = time.perf_counter() - start_s
            return WeightResult(order.number, num_bytes=num_bytes, seconds=seconds)
        return WeightResult(order.number, problem, seconds=time.perf_counter() - start_s)

    def _run(self, move: _Move, start_s: float) -> int:
        if move.order.move is WeightMove.FETCH:
            return move.weights.fetch()

        def begin() -> None:
            seconds = time.perf_counter() - start_s
            self._on_moved(WeightResult(move.order.number, seconds=seconds, is_last=False))

        return move.weights.load(begin)


def _warn(order: WeightOrder, weights: HeldWeights, error: Exception) -> None:
    logger.warning("%s of %s failed: %s", order.move, weights.card.model, error)
