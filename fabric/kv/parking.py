"""The fenced protocol that moves KV blocks between the device and the tiers below it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from fabric.kv.block_pool import BlockPool
from fabric.kv.table import ABSENT, BlockTable, Residence
from fabric.kv.transfer import Direction, ParkingSpace, Tier, Transfer, TransferResult

_TIERS = (Tier.HOST, Tier.DISK)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A transfer under way, of the blocks at ``positions`` of its sequence's table.

    ``key`` is the sequence that waits for it; None: nobody, it only tidies up.
    """

    transfer: Transfer
    key: int | None
    positions: tuple[int, ...]
    is_abandoned: bool = False


class Parking:
    """Tables whose sequences are not resident, the slots of the tiers, and transfers under way.

    Whatever a transfer reads or writes is held by the transfer itself until it is over, however
    its sequence fares: nobody else gets a block or slot that a copy may still touch (quarantine).
    A sequence waits for transfers by their numbers, which are never used twice; when it is freed
    or goes another way it forgets them, so a late completion changes nothing (epoch).

    A block that resident sequences share stays on the device, pinned by those that are parked,
    and moves once for all of them when the last resident one is gone. Slots keep the prefix hash
    of a full block after its way back, so that parking it again copies nothing.

    Source: FastServe (Wu et al.), section 4.2, with the synchronisation that its code lacks.
    """

    def __init__(
        self,
        pool: BlockPool,
        space: ParkingSpace,
        block_size: int,
        caches: bool,
        release: Callable[[int], None],
        numbers: Iterator[int] | None = None,
    ) -> None:
        """Start with nothing parked; ``release`` takes a user away from a device block.

        Transfers get the next of ``numbers``, which several models may draw from; None: 1, 2, ...
        """
        self.tables: dict[int, BlockTable] = {}
        self.slots = {
            tier: BlockPool.fixed(space.num_slots(tier)) for tier in _TIERS if space.num_slots(tier)
        }
        self._pool = pool
        self._release = release
        self._block_size = block_size
        self._caches = caches
        self._pins: dict[int, set[int]] = {}
        self._flights: dict[int, _Flight] = {}
        self._flying: Counter[int] = Counter()
        self._started: list[Transfer] = []
        self._numbers = count(1) if numbers is None else numbers

    @property
    def num_flights(self) -> int:
        """Transfers under way, those that nobody waits for among them."""
        return len(self._flights)

    @property
    def num_leaving(self) -> int:
        """Device blocks that transfers under way are about to free."""
        if not self._flights:
            return 0
        return sum(
            len(flight.transfer.pairs)
            for flight in self._flights.values()
            if flight.transfer.direction is Direction.OUT and not flight.is_abandoned
        )

    def num_users(self, block: int) -> int:
        """How many resident sequences use a block."""
        pinned = len(self._pins.get(block, ()))
        return self._pool.refcount(block) - pinned - self._flying[block]

    def park(self, key: int, table: BlockTable, num_tokens: int) -> bool:
        """Begin to move a resident sequence's blocks out; False, and no change: no room.

        Its first ``num_tokens`` tokens have KV; blocks beyond them are given back.
        """
        num_blocks = -(-num_tokens // self._block_size)
        table.num_tokens = num_tokens
        # Its own use counts: a block that nobody else uses has exactly one user.
        moving = [p for p in range(num_blocks) if self.num_users(table.blocks[p]) == 1]
        if not self._has_room(table, moving):
            return False
        for block in reversed(table.blocks[num_blocks:]):
            self._release(block)
        del table.blocks[num_blocks:]
        self.tables[key] = table
        for block in table.blocks:
            self._pins.setdefault(block, set()).add(key)
        table.flights = self._send_out(key, table, moving)
        table.residence = Residence.COPYING_OUT if table.flights else Residence.PARKED
        return True

    def park_idle(self) -> int:
        """Move out the blocks that only parked sequences hold; return how many begin to move."""
        num_moving = 0
        for block in [b for b in self._pins if not self._flying[b] and not self.num_users(b)]:
            if block not in self._pins:
                continue
            key = min(self._pins[block])
            table = self.tables[key]
            position = table.blocks.index(block)
            if self._has_room(table, [position]):
                self._send_out(None, table, [position])
                num_moving += 1
        return num_moving

    def resume(self, key: int) -> bool:
        """Make a sequence resident again whose blocks are all on the device still, if they are."""
        table = self.tables[key]
        if ABSENT in table.blocks or table.residence is Residence.COPYING_IN:
            return False
        del self.tables[key]
        self._unpin(key, table)
        table.flights = set()
        table.residence = Residence.RESIDENT
        return True

    def fetch(self, key: int, num_blocks: int, num_spare: int) -> bool:
        """Begin to move a parked sequence in; False, and no change: too few blocks are free.

        One that is on its way out turns back, without what has left already. Its table gets
        ``num_blocks`` blocks in all, and ``num_spare`` others stay free.
        """
        table, pool = self.tables[key], self._pool
        assert table.residence is not Residence.COPYING_IN
        found = {p: b for p in table.slots if (b := self._cached_block(table, p)) is not None}
        num_revived = sum(1 for block in found.values() if pool.refcount(block) == 0)
        num_new = num_blocks - len(table.blocks) + len(table.slots) - len(found)
        if num_new + num_revived + num_spare > pool.num_free:
            return False
        self._unpin(key, table)
        table.flights = set()
        for position, block in found.items():
            pool.share(block)
            table.blocks[position] = block
            self._release_slot(table.slots.pop(position))
        for position in table.slots:
            table.blocks[position] = pool.take()
        table.blocks += [pool.take() for _ in range(num_blocks - len(table.blocks))]
        for tier in _TIERS:
            positions = [p for p, place in table.slots.items() if place[0] is tier]
            if positions:
                table.flights.add(self._start(Direction.IN, tier, key, table, positions))
        table.residence = Residence.COPYING_IN if table.flights else Residence.RESIDENT
        if not table.flights:
            del self.tables[key]
        return True

    def finish(self, result: TransferResult) -> tuple[int, BlockTable] | None:
        """Take in that a transfer is over; return the sequence that waited for it, if any did.

        If it failed, a sequence that was copied out is COPYING_OUT still, to be resumed or freed;
        one that was copied in is COPYING_IN, and to be freed.
        """
        flight = self._flights.pop(result.number)
        table = self.tables.get(flight.key) if flight.key is not None else None
        is_awaited = table is not None and result.number in table.flights
        slots = self.slots[flight.transfer.tier]
        if result.error:
            for _, slot in flight.transfer.pairs:
                slots.forget(slot)
        elif flight.transfer.direction is Direction.OUT:
            if is_awaited or (flight.key is None and not flight.is_abandoned):
                self._settle_out(flight)
        elif is_awaited:
            assert table is not None
            self._settle_in(table, flight)
        for block, slot in flight.transfer.pairs:
            self._land(block)
            slots.release(slot)
        if flight.key is None or table is None or not is_awaited:
            return None
        if not result.error:
            table.flights.discard(result.number)
            self._settle(flight.key, table)
        return flight.key, table

    def abandon(self, number: int) -> int | None:
        """Give a transfer up that takes too long; return the sequence that waited for it.

        Its blocks and slots stay in quarantine until it is over after all.
        """
        flight = self._flights[number]
        self._flights[number] = _Flight(flight.transfer, None, (), is_abandoned=True)
        table = self.tables.get(flight.key) if flight.key is not None else None
        return flight.key if table is not None and number in table.flights else None

    def free(self, key: int) -> None:
        """Let go of whatever a sequence that is not resident holds."""
        table = self.tables.pop(key)
        self._unpin(key, table)
        for place in table.slots.values():
            self._release_slot(place)
        for block in reversed(table.blocks):
            if block != ABSENT:
                self._release(block)

    def take_started(self) -> tuple[Transfer, ...]:
        """The transfers begun since the last call."""
        if not self._started:
            return ()
        started = tuple(self._started)
        self._started.clear()
        return started

    def holds(self) -> tuple[Counter[int], Counter[tuple[Tier, int]]]:
        """How often each device block, and each slot, is held here; for checks."""
        blocks: Counter[int] = Counter()
        places: Counter[tuple[Tier, int]] = Counter()
        for table in self.tables.values():
            blocks.update(block for block in table.blocks if block != ABSENT)
            places.update(table.slots.values())
        for flight in self._flights.values():
            blocks.update(block for block, _ in flight.transfer.pairs)
            places.update((flight.transfer.tier, slot) for _, slot in flight.transfer.pairs)
        return blocks, places

    def _has_room(self, table: BlockTable, positions: list[int]) -> bool:
        num_free = sum(slots.num_free for slots in self.slots.values())
        num_copied = 0
        for position in positions:
            place = self._cached_slot(table, position)
            num_copied += place is None or self.slots[place[0]].refcount(place[1]) == 0
        return num_copied <= num_free

    def _send_out(self, key: int | None, table: BlockTable, positions: list[int]) -> set[int]:
        """Give each block a slot, and begin to copy those that are in no slot yet."""
        copied = []
        for position in positions:
            place = self._cached_slot(table, position)
            if place is None:
                copied.append(position)
            else:
                self.slots[place[0]].share(place[1])
                self._move_holders(table.blocks[position], position, place)
                self._release_slot(place)
        flights = set()
        for tier in _TIERS:
            taken = copied[: self.slots[tier].num_free] if tier in self.slots else []
            if taken:
                flights.add(self._start(Direction.OUT, tier, key, table, taken))
                copied = copied[len(taken) :]
        assert not copied
        return flights

    def _start(
        self,
        direction: Direction,
        tier: Tier,
        key: int | None,
        table: BlockTable,
        positions: list[int],
    ) -> int:
        slots = self.slots[tier]
        pairs = []
        for position in positions:
            block = table.blocks[position]
            if direction is Direction.OUT:
                slot = slots.take()
            else:
                slot = table.slots[position][1]
                slots.share(slot)
            self._pool.share(block)
            self._flying[block] += 1
            pairs.append((block, slot))
        transfer = Transfer(next(self._numbers), direction, tier, tuple(pairs))
        self._flights[transfer.number] = _Flight(transfer, key, tuple(positions))
        self._started.append(transfer)
        return transfer.number

    def _settle_out(self, flight: _Flight) -> None:
        tier = flight.transfer.tier
        for position, (block, slot) in zip(flight.positions, flight.transfer.pairs, strict=True):
            holders = self._pins.get(block)
            if not holders:
                continue
            table = self.tables[min(holders)]
            if self._is_full(table, position):
                self.slots[tier].register(slot, table.chain.hash_of(position))
            self._move_holders(block, position, (tier, slot))

    def _settle_in(self, table: BlockTable, flight: _Flight) -> None:
        for position, (block, _) in zip(flight.positions, flight.transfer.pairs, strict=True):
            self._release_slot(table.slots.pop(position))
            if self._is_full(table, position):
                self._pool.register(block, table.chain.hash_of(position))

    def _settle(self, key: int, table: BlockTable) -> None:
        if table.flights:
            return
        if table.residence is Residence.COPYING_OUT:
            table.residence = Residence.PARKED
        else:
            table.residence = Residence.RESIDENT
            del self.tables[key]

    def _move_holders(self, block: int, position: int, place: tuple[Tier, int]) -> None:
        """Give all parked holders of a device block a slot in its stead."""
        for key in sorted(self._pins.pop(block)):
            table = self.tables[key]
            table.blocks[position] = ABSENT
            table.slots[position] = place
            self.slots[place[0]].share(place[1])
            self._release(block)

    def _land(self, block: int) -> None:
        self._flying[block] -= 1
        if not self._flying[block]:
            del self._flying[block]
        self._release(block)

    def _unpin(self, key: int, table: BlockTable) -> None:
        for block in table.blocks:
            holders = self._pins.get(block)
            if holders is not None:
                holders.discard(key)
                if not holders:
                    del self._pins[block]

    def _release_slot(self, place: tuple[Tier, int]) -> None:
        self.slots[place[0]].release(place[1])

    def _is_full(self, table: BlockTable, position: int) -> bool:
        return self._caches and (position + 1) * self._block_size <= table.num_tokens

    def _cached_block(self, table: BlockTable, position: int) -> int | None:
        if not self._is_full(table, position):
            return None
        return self._pool.find(table.chain.hash_of(position))

    def _cached_slot(self, table: BlockTable, position: int) -> tuple[Tier, int] | None:
        if not self._is_full(table, position):
            return None
        return self._slot_of(table.chain.hash_of(position))

    def _slot_of(self, prefix_hash: bytes) -> tuple[Tier, int] | None:
        for tier, slots in self.slots.items():
            slot = slots.find(prefix_hash)
            if slot is not None:
                return tier, slot
        return None
