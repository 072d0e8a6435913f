"""A search through all states that a model of KV movement can get into."""

from collections import deque
from dataclasses import dataclass

from fabric.kv.block_pool import BlockPool
from fabric.kv.table import ABSENT, BlockTable
from fabric.kv.transfer import Transfer
from tests.unit.kv_model import Action, Case, MovementModel, plain_blocks


@dataclass(frozen=True)
class Finding:
    """The states seen, whether they are all there are, and how the first wrong one came about."""

    num_states: int
    num_moves: int
    is_complete: bool
    trace: tuple[Action, ...] = ()
    violation: str = ""

    def __str__(self) -> str:
        steps = "\n".join(f"  {i}. {action}" for i, action in enumerate(self.trace, 1))
        return f"{self.violation or 'no violation'} ({self.num_states} states)\n{steps}"


def search(case: Case, max_states: int, drain: bool = True) -> Finding:
    """Go breadth first through the states of ``case``, until one is wrong or all are seen."""
    start = MovementModel(case)
    seen = {canonical(start)}
    queue: deque[tuple[bytes, tuple[Action, ...]]] = deque([(start.pack(), ())])
    num_moves = 0
    while queue and len(seen) < max_states:
        packed, trace = queue.popleft()
        for action in MovementModel.unpack(packed, case).actions():
            model = MovementModel.unpack(packed, case)
            num_moves += 1
            try:
                model.apply(action)
                state = canonical(model)
                if state in seen:
                    continue
                seen.add(state)
                following = model.pack()
                if drain:
                    model.drain()
            except (AssertionError, LookupError, ValueError) as error:
                violation = f"{type(error).__name__}: {error}"
                return Finding(len(seen), num_moves, False, (*trace, action), violation)
            queue.append((following, (*trace, action)))
    return Finding(len(seen), num_moves, not queue)


class Names:
    """New names for ids, in the order of their first use: states that differ only in ids match."""

    def __init__(self) -> None:
        self._names: dict[object, dict[int, int]] = {}

    def of(self, kind: object, number: int) -> int:
        if number == ABSENT:
            return ABSENT
        names = self._names.setdefault(kind, {})
        return names.setdefault(number, len(names))


def canonical(model: MovementModel) -> int:
    """All of a model's state but the ids of blocks, slots and transfers."""
    kv, names = model.kv, Names()
    parking = kv._parking
    for number in sorted(parking._flights.keys() | model.running.keys()):
        names.of("transfer", number)
    tables = [_table(kv._tables.get(key) or parking.tables.get(key), names) for key in range(4)]
    flights = [
        (flight.transfer.direction, flight.transfer.tier, flight.key, flight.positions,
         flight.is_abandoned, number in {t.number for t in parking._started},
         _pairs(flight.transfer, names))
        for number, flight in sorted(parking._flights.items())
    ]  # fmt: skip
    # The mover may be at a transfer that the books have wrongly closed.
    running = [
        (names.of("transfer", number), one.transfer.direction, one.transfer.tier,
         _pairs(one.transfer, names), frozenset(one.remaining), one.is_abandoned)
        for number, one in sorted(model.running.items())
    ]  # fmt: skip
    live = [
        (key, tuple(one.tokens), one.num_computed, one.num_scheduled, one.is_lost)
        for key, one in sorted(model.live.items())
    ]
    copies = tuple((names.of("", s), names.of("", t)) for t, s in kv._copies.items())
    held = tuple(names.of("", block) for block in kv._held)
    emptied = tuple(sorted(names.of("", block) for block in set(kv._pool.emptied or ())))
    pools = [_pool("", kv._pool, model.device, names)]
    pools += [_pool(tier, pool, model.tiers[tier], names) for tier, pool in model.slots.items()]
    return hash((*tables, *flights, *running, *live, copies, held, emptied, *pools))


def _table(table: BlockTable | None, names: Names) -> object:
    if table is None:
        return None
    return (
        tuple(names.of("", block) for block in table.blocks),
        tuple((p, t, names.of(t, s)) for p, (t, s) in sorted(table.slots.items())),
        tuple(sorted(names.of("transfer", number) for number in table.flights)),
        table.residence, table.num_registered, table.num_tokens,
    )  # fmt: skip


def _pairs(transfer: Transfer, names: Names) -> tuple[tuple[int, int], ...]:
    return tuple((names.of("", block), names.of(transfer.tier, s)) for block, s in transfer.pairs)


def _pool(kind: object, pool: BlockPool, content: list[object], names: Names) -> object:
    plain = [names.of(kind, block) for block in plain_blocks(pool)]
    evictable = [names.of(kind, block) for block in pool._evictable]
    rows = sorted(
        (names.of(kind, block), pool.refcount(block), pool._hashes[block] or b"", tuple(row))
        for block, row in enumerate(content)
    )
    return tuple(plain), tuple(evictable), tuple(rows)
