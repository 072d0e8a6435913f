"""Copies of KV blocks and moves of weights, on a virtual clock."""

from collections import deque
from collections.abc import Sequence
from math import inf

from fabric.core.weights import WeightMove, WeightOrder, WeightResult
from fabric.kv.transfer import BlockOrders, ParkingSpace, TransferResult, WorkerOrders
from placement.cost.model import ModelCost

# An iteration can begin when so much of its model's weights is there, and its last layers wait
# for the rest.
FIRST_SHARE = 0.1

Finished = TransferResult | WeightResult


class SimulatedMoves:
    """One link for blocks, and one for weights: each carries one move after the other."""

    def __init__(
        self,
        costs: Sequence[ModelCost],
        spaces: Sequence[ParkingSpace],
        uses_host: Sequence[bool],
        num_devices: int = 1,
    ) -> None:
        """Nothing moves yet.

        Weights that don't use host memory are loaded from disk; if they are for several devices,
        no iteration begins before all are there, as files may turn out broken on one of them.
        """
        self._is_alone = num_devices == 1
        self._costs = costs
        self._spaces = spaces
        self._uses_host = uses_host
        self._copies: deque[tuple[float, TransferResult]] = deque()
        self._weights: deque[tuple[float, WeightResult]] = deque()
        self._loaded_s = [-inf] * len(costs)

    @property
    def next_s(self) -> float:
        """When something is over next."""
        copied_s = self._copies[0][0] if self._copies else inf
        moved_s = self._weights[0][0] if self._weights else inf
        return min(copied_s, moved_s)

    def loaded_s(self, model: int) -> float:
        """When all of a model's weights are on the device since its last load."""
        return self._loaded_s[model]

    def forget_loads(self) -> None:
        """Take all weights that have been loaded to be there."""
        self._loaded_s = [-inf] * len(self._costs)

    def begin(self, orders: WorkerOrders, now: float) -> None:
        """Put moves in line."""
        for order in orders.weights:
            self._move(order, now)
        for blocks in orders.blocks:
            self._copy(blocks, now)

    def take_finished(self, now: float) -> list[Finished]:
        """What is over by now, and not taken yet."""
        finished: list[Finished] = []
        while self._copies and self._copies[0][0] <= now:
            finished.append(self._copies.popleft()[1])
        while self._weights and self._weights[0][0] <= now:
            finished.append(self._weights.popleft()[1])
        return finished

    def _move(self, order: WeightOrder, now: float) -> None:
        cost = self._costs[order.model]
        start_s = max(now, self._weights[-1][0]) if self._weights else now
        num_bytes = sum(cost.weight_bytes)
        if order.move is WeightMove.FETCH:
            result = WeightResult(order.number, "", num_bytes, cost.fetch_s)
            self._weights.append((start_s + cost.fetch_s, result))
        elif order.move is WeightMove.LOAD:
            uses_host = self._uses_host[order.model]
            seconds = cost.load_s + (0.0 if uses_host else cost.fetch_s)
            first_s = FIRST_SHARE * seconds if uses_host or self._is_alone else seconds
            first = WeightResult(order.number, seconds=first_s, is_last=False)
            last = WeightResult(order.number, "", num_bytes, seconds)
            self._weights.append((start_s + first_s, first))
            self._weights.append((start_s + seconds, last))
            self._loaded_s[order.model] = start_s + seconds

    def _copy(self, orders: BlockOrders, now: float) -> None:
        profile, space = self._costs[orders.model].profile, self._spaces[orders.model]
        for transfer in orders.transfers:
            num_bytes = len(transfer.pairs) * space.block_bytes
            copy_s = profile.copy_s(transfer.tier, transfer.direction, num_bytes)
            start_s = max(now, self._copies[-1][0]) if self._copies else now
            result = TransferResult(transfer.number, "", num_bytes, start_s - now, copy_s)
            self._copies.append((start_s + copy_s, result))
