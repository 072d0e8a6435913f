"""Carries out the scheduler's transfers of KV blocks on threads of its own, beside iterations."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fabric.engine.block_tier import BlockTier, CopyFailed, piece_blocks
from fabric.engine.copy_pace import CopyPace, give_way
from fabric.engine.device_blocks import DeviceBlocks, Pairs
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer, TransferResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelBlocks:
    """One model's blocks on the device, what one weighs, and the tiers that they are parked in."""

    device: DeviceBlocks
    tiers: Mapping[Tier, BlockTier]
    block_bytes: int


@dataclass(frozen=True, slots=True)
class _Order:
    blocks: ModelBlocks
    transfer: Transfer
    fence: object
    at_s: float


class Mover:
    """Copies models' blocks between a device and their tiers; each transfer gets one result.

    ``move`` belongs to the thread that runs iterations, and never waits for a copy. ``on_moved``
    is called on the copy threads. Transfers are begun in their order, whichever model's they are;
    those in flight at one time have no block and no slot in common, which their giver sees to.
    """

    def __init__(
        self,
        models: Sequence[ModelBlocks],
        settings: ParkingSettings,
        on_moved: Callable[[TransferResult], None],
    ) -> None:
        self._models = models
        self._delay_s = settings.delay_s
        self._on_moved = on_moved
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._pace = CopyPace(settings.max_bytes_per_s, self._closing)
        self._threads = [
            threading.Thread(target=self._work, name=f"copy-{i}", daemon=True)
            for i in range(settings.num_copy_threads if any(model.tiers for model in models) else 0)
        ]
        for thread in self._threads:
            thread.start()

    def move(self, orders: BlockOrders) -> None:
        """Poison a model's blocks, and queue transfers behind what the device does now."""
        blocks = self._models[orders.model]
        if orders.poisoned:
            blocks.device.poison(orders.poisoned)
        if not orders.transfers:
            return
        fence, now_s = blocks.device.fence(), time.perf_counter()
        for transfer in orders.transfers:
            if transfer.tier in blocks.tiers:
                self._orders.put(_Order(blocks, transfer, fence, now_s))
            else:
                self._on_moved(TransferResult(transfer.number, f"there is no {transfer.tier} tier"))

    def close(self) -> None:
        """Drop the transfers that wait, and return when those that run are over."""
        self._closing.set()
        for _ in self._threads:
            self._orders.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        give_way()
        while (order := self._orders.get()) is not None and not self._closing.is_set():
            self._on_moved(self._carry_out(order))

    def _carry_out(self, order: _Order) -> TransferResult:
        transfer, start_s = order.transfer, time.perf_counter()
        result = TransferResult(
            transfer.number,
            num_bytes=len(transfer.pairs) * order.blocks.block_bytes,
            queue_s=start_s - order.at_s,
        )
        try:
            self._copy(order)
        except (CopyFailed, OSError) as error:
            logger.warning("transfer %d failed: %s", transfer.number, error)
            result = replace(result, error=str(error), num_bytes=0)
        except Exception as error:
            # The thread's edge: what we did wrong in one transfer must not stop the others.
            logger.exception("transfer %d failed", transfer.number)
            result = replace(result, error=f"{type(error).__name__}: {error}", num_bytes=0)
        return replace(result, copy_s=time.perf_counter() - start_s)

    def _copy(self, order: _Order) -> None:
        pairs = order.transfer.pairs
        if self._delay_s:
            # In the middle: whoever uses the blocks too early meets two different halves.
            half = len(pairs) // 2
            self._copy_pairs(order, pairs[:half])
            self._closing.wait(self._delay_s)
            pairs = pairs[half:]
        self._copy_pairs(order, pairs)

    def _copy_pairs(self, order: _Order, pairs: Pairs) -> None:
        blocks = order.blocks
        tier = blocks.tiers[order.transfer.tier]
        copy = tier.store if order.transfer.direction is Direction.OUT else tier.load
        bounds = (blocks.device.piece_bytes, tier.max_piece_bytes)
        size = piece_blocks(blocks.block_bytes, *bounds)
        for start in range(0, len(pairs), size):
            piece = pairs[start : start + size]
            self._pace.wait_for(len(piece) * blocks.block_bytes)
            copy(blocks.device, piece, order.fence)
