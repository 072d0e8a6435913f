"""Ways to get fences wrong, the released FastServe's first."""

from fabric.kv.block_pool import BlockPool
from fabric.kv.parking import Parking
from fabric.kv.table import ABSENT, BlockTable, Residence
from fabric.kv.transfer import Direction, Tier, TransferResult


class Mutant(Parking):
    """Knows which transfers it has let go of too early, so that their true end is no surprise."""

    def finish(self, result: TransferResult) -> tuple[int, BlockTable] | None:
        if result.number not in self._flights:
            return None
        return super().finish(result)

    def abandon(self, number: int) -> int | None:
        return super().abandon(number) if number in self._flights else None

    def _let_go(self, direction: Direction, numbers: set[int]) -> None:
        for number in sorted(numbers):
            flight = self._flights.get(number)
            if flight is not None and flight.transfer.direction is direction:
                self.finish(TransferResult(number))


class EventBeforeCopy(Mutant):
    """FastServe: an event recorded before the copy is queued is over at once: blocks are freed."""

    def park(self, key: int, table: BlockTable, num_tokens: int) -> bool:
        parked = super().park(key, table, num_tokens)
        if parked:
            self._let_go(Direction.OUT, set(table.flights))
        return parked


class WaitsNeverMatch(Mutant):
    """FastServe: events are kept by requests and looked up by ids, so no reader ever waits."""

    def fetch(self, key: int, num_blocks: int, num_spare: int) -> bool:
        table = self.tables[key]
        fetched = super().fetch(key, num_blocks, num_spare)
        if fetched:
            self._let_go(Direction.IN, set(table.flights))
        return fetched


class NoSlotQuarantine(Mutant):
    """A sequence that turns back before its copy is over gives up the slots at once."""

    def resume(self, key: int) -> bool:
        flights = self.tables[key].flights
        resumed = super().resume(key)
        if resumed:
            self._let_go(Direction.OUT, flights)
        return resumed


class NoBlockQuarantine(Mutant):
    """A sequence that ends while it is copied in gives up the blocks at once."""

    def free(self, key: int) -> None:
        flights = self.tables[key].flights
        super().free(key)
        self._let_go(Direction.IN, flights)


class AbandonedIsOver(Mutant):
    """A transfer that takes too long is taken for one that will never write again."""

    def abandon(self, number: int) -> int | None:
        waiter = super().abandon(number)
        self.finish(TransferResult(number, "too late"))
        return waiter


class NoEpoch(Mutant):
    """A completion is taken for the one that the sequence waits for, whichever it is."""

    def finish(self, result: TransferResult) -> tuple[int, BlockTable] | None:
        flight = self._flights.get(result.number)
        table = None if flight is None else self.tables.get(flight.key)
        if table is not None:
            table.flights.clear()
            table.flights.add(result.number)
        return super().finish(result)


class SharedBlocksLeave(Mutant):
    """Parking a sequence moves the blocks that resident ones share, too."""

    def num_users(self, block: int) -> int:
        return min(super().num_users(block), 1)


class FirstTransferIsEnough(Mutant):
    """A sequence is back when the first of its transfers is."""

    def _settle(self, key: int, table: BlockTable) -> None:
        table.flights.clear()
        super()._settle(key, table)


class FailureIsSuccess(Mutant):
    """Nobody looks at errors."""

    def finish(self, result: TransferResult) -> tuple[int, BlockTable] | None:
        return super().finish(TransferResult(result.number))


class HalfMovedResumes(Mutant):
    """A sequence turns back although some of its blocks have left."""

    def resume(self, key: int) -> bool:
        table = self.tables[key]
        if table.residence is Residence.PARKED and ABSENT in table.blocks:
            table.blocks = [0 if block == ABSENT else block for block in table.blocks]
        return super().resume(key)


class SlotsKnownTooEarly(Mutant):
    """A slot can be found by its prefix as soon as the copy into it is ordered."""

    def _start(
        self, direction: Direction, tier: Tier, key: int | None, table: BlockTable,
        positions: list[int],
    ) -> int:  # fmt: skip
        number = super()._start(direction, tier, key, table, positions)
        pairs = self._flights[number].transfer.pairs
        for position, (_, slot) in zip(positions, pairs, strict=True):
            if direction is Direction.OUT and self._is_full(table, position):
                self._register_early(self.slots[tier], slot, table.chain.hash_of(position))
        return number

    def _register_early(self, slots: BlockPool, slot: int, prefix_hash: bytes) -> None:
        slots.register(slot, prefix_hash)
