"""KV movement with its memories modelled: who decides is real, what is in each block is checked.

A cell's content is the sequence's tokens up to there, as KV depends on all of them. Copies happen
one by one, at any moment between a transfer's order and its end.
"""

import pickle
from dataclasses import dataclass, field
from typing import NamedTuple

from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.parking import Parking
from fabric.kv.prefix import PrefixChain, root_hash
from fabric.kv.table import ABSENT, Residence
from fabric.kv.transfer import Direction, ParkingSpace, Tier, Transfer, TransferResult

VOID: tuple[int, ...] = ()


class Action(NamedTuple):
    """One move of the model; ``subject`` is a sequence's key or a transfer's number."""

    kind: str
    subject: int = 0
    choice: int = 0

    def __str__(self) -> str:
        return f"{self.kind}({self.subject}, {self.choice})"


@dataclass(frozen=True)
class Case:
    """How big the model is; sequence ``key`` has the tokens ``prompts[key]``, all known ahead."""

    prompts: tuple[tuple[int, ...], ...]
    num_blocks: int = 3
    block_size: int = 1
    num_host_slots: int = 2
    num_disk_slots: int = 1
    prefix_cache: bool = False
    forks: bool = False
    max_transfers: int = 2
    chunks: tuple[int, ...] = (1,)
    parking: type[Parking] = Parking


@dataclass
class Live:
    """A sequence: its tokens, how many have KV, how many the next iteration computes."""

    tokens: list[int]
    num_computed: int = 0
    num_scheduled: int = 0
    is_lost: bool = False


@dataclass
class Running:
    """A transfer that the mover has: which of its pairs are yet to be copied."""

    transfer: Transfer
    remaining: set[int] = field(default_factory=set)
    is_abandoned: bool = False


def plain_blocks(pool: BlockPool) -> list[int]:
    """The blocks of a fixed pool that hold nothing, the next one to be taken last."""
    if 0 in pool._records:
        return pool._records[0].plain
    return list(range(pool.num_blocks - 1, -1, -1))


class MovementModel:
    def __init__(self, case: Case) -> None:
        self.case = case
        space = ParkingSpace(case.num_host_slots, case.num_disk_slots)
        pool = BlockPool.fixed(case.num_blocks, notes_emptied=True)
        self.kv = KVCacheManager(pool, case.block_size, case.prefix_cache, space)
        if case.parking is not Parking:
            self.kv._parking = case.parking(
                self.kv._pool, space, case.block_size, case.prefix_cache, self.kv._release
            )
        self.live: dict[int, Live] = {}
        self.running: dict[int, Running] = {}
        empty = [VOID] * case.block_size
        self.device = [list(empty) for _ in range(case.num_blocks)]
        self.tiers = {
            tier: [list(empty) for _ in range(space.num_slots(tier))] for tier in self.slots
        }

    def pack(self) -> bytes:
        """The whole state, from which ``unpack`` makes copies."""
        return pickle.dumps({**self.__dict__, "case": None}, pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(packed: bytes, case: Case) -> "MovementModel":
        model = MovementModel.__new__(MovementModel)
        model.__dict__.update(pickle.loads(packed))
        model.case = case
        return model

    @property
    def slots(self) -> dict[Tier, BlockPool]:
        return self.kv._parking.slots

    def actions(self) -> list[Action]:
        """Everything that may happen next; some of it may turn out to have no room."""
        found = [Action("step")]
        for key in range(len(self.case.prompts)):
            found += self._sequence_actions(key) if key in self.live else [Action("admit", key)]
        for number, running in self.running.items():
            found += [Action("copy", number, pair) for pair in sorted(running.remaining)]
            if not running.remaining:
                found.append(Action("finish", number))
            found.append(Action("fail", number))
            if not running.is_abandoned:
                found.append(Action("abandon", number))
        if self._may_move:
            found.append(Action("park_idle"))
        return found

    @property
    def _may_move(self) -> bool:
        return self.kv.num_transfers < self.case.max_transfers

    def _sequence_actions(self, key: int) -> list[Action]:
        live, residence = self.live[key], self.kv.residence(key)
        if live.num_scheduled:
            return []
        found = [Action("free", key)]
        if residence is Residence.RESIDENT:
            found += [
                Action("token", key, chunk)
                for chunk in self.case.chunks
                if live.num_computed + chunk <= len(live.tokens)
            ]
            if self._may_move:
                found.append(Action("park", key))
            if self.case.forks:
                free = [k for k in range(len(self.case.prompts)) if k not in self.live]
                found += [Action("fork", key, child) for child in free[:1]]
        elif residence is not Residence.COPYING_IN:
            found.append(Action("resume", key))
            if self._may_move:
                found.append(Action("fetch", key))
        return found

    def apply(self, action: Action) -> bool:
        """Let it happen, then check everything; False if it was refused."""
        happened = getattr(self, f"_{action.kind}")(action.subject, action.choice)
        self._void_free_slots()
        self.check()
        return happened is not False

    def _chain(self, tokens: list[int]) -> PrefixChain:
        return PrefixChain(tokens, self.case.block_size, root_hash("model", ""))

    def _admit(self, key: int, _: int) -> bool:
        tokens = list(self.case.prompts[key])
        chain = self._chain(tokens)
        cached = self.kv.find_cached(chain, len(tokens))
        num_computed = len(cached) * self.case.block_size
        if not self.kv.can_admit(num_computed + 1, cached, 0):
            return False
        self.kv.open(key, chain, cached)
        self.live[key] = Live(tokens, num_computed)
        assert self._token(key, 1)
        return True

    def _fork(self, key: int, child: int) -> None:
        parent = self.live[key]
        num = parent.num_computed
        tokens = parent.tokens[:num] + list(self.case.prompts[child][num:])
        self.kv.fork(key, child, self._chain(tokens))
        self.live[child] = Live(tokens, num)

    def _token(self, key: int, num_new: int) -> bool:
        live = self.live[key]
        if self.kv.allocate(key, live.num_computed + num_new, live.num_computed) is None:
            return False
        live.num_scheduled = num_new
        return True

    def _park(self, key: int, _: int) -> bool:
        before = self._started()
        parked = self.kv.park(key, self.live[key].num_computed)
        self._check_moves_nothing_used(before)
        return parked

    def _park_idle(self, _: int, __: int) -> bool:
        before = self._started()
        num_moving = self.kv.park_idle()
        self._check_moves_nothing_used(before)
        return num_moving > 0

    def _resume(self, key: int, _: int) -> bool:
        return self.kv.resume(key)

    def _fetch(self, key: int, _: int) -> bool:
        live = self.live[key]
        return self.kv.fetch(key, min(live.num_computed + 1, len(live.tokens)), 0)

    def _free(self, key: int, _: int) -> None:
        self.kv.free(key)
        del self.live[key]

    def _copy(self, number: int, index: int) -> None:
        running = self.running[number]
        transfer = running.transfer
        block, slot = transfer.pairs[index]
        tier = self.tiers[transfer.tier]
        if transfer.direction is Direction.OUT:
            tier[slot] = list(self.device[block])
        else:
            self.device[block] = list(tier[slot])
        running.remaining.discard(index)

    def _finish(self, number: int, _: int) -> None:
        del self.running[number]
        self.kv.finish_transfer(TransferResult(number))

    def _fail(self, number: int, _: int) -> None:
        transfer = self.running.pop(number).transfer
        is_out = transfer.direction is Direction.OUT
        for block, slot in transfer.pairs:
            row = self.tiers[transfer.tier][slot] if is_out else self.device[block]
            row[:] = [VOID] * self.case.block_size
        self._note_loss(self.kv.finish_transfer(TransferResult(number, "failed")))

    def _abandon(self, number: int, _: int) -> None:
        self.running[number].is_abandoned = True
        self._note_loss(self.kv.abandon_transfer(number))

    def _note_loss(self, key: int | None) -> None:
        if key is not None and self.kv.residence(key) is Residence.COPYING_IN:
            self.live[key].is_lost = True

    def _step(self, _: int, __: int) -> None:
        """An iteration: poison, begin transfers, copy on write, read all, write the new tokens."""
        orders = self.kv.take_orders()
        for block in orders.poisoned:
            self.device[block] = [VOID] * self.case.block_size
        for transfer in orders.transfers:
            self.running[transfer.number] = Running(transfer, set(range(len(transfer.pairs))))
        before = [list(row) for row in self.device]
        for source, target in self.kv.take_copies():
            self.device[target] = list(before[source])
        self.check()
        for key, live in self.live.items():
            for position in range(live.num_computed, live.num_computed + live.num_scheduled):
                block = self.kv.block_ids(key)[position // self.case.block_size]
                content = tuple(live.tokens[: position + 1])
                self.device[block][position % self.case.block_size] = content
            live.num_computed += live.num_scheduled
            if live.num_scheduled:
                self.kv.register(key, live.num_computed)
            live.num_scheduled = 0

    def _void_free_slots(self) -> None:
        for tier, pool in self.slots.items():
            for slot in plain_blocks(pool):
                self.tiers[tier][slot] = [VOID] * self.case.block_size

    def check(self) -> None:
        """Assert that whoever may read finds its own KV, and that the books are right."""
        self.kv.check_invariants()
        for key in self.live:
            if self.kv.residence(key) is not Residence.COPYING_IN:
                self._check_content(key)

    def _check_content(self, key: int) -> None:
        live, parking = self.live[key], self.kv._parking
        table = parking.tables.get(key) or self.kv._tables[key]
        for position in range(live.num_computed):
            index, offset = divmod(position, self.case.block_size)
            block = table.blocks[index]
            if block in self.kv._copies:
                continue
            if block == ABSENT:
                tier, slot = table.slots[index]
                row, place = self.tiers[tier][slot], f"{tier} slot {slot}"
            else:
                row, place = self.device[block], f"device block {block}"
            wanted = tuple(live.tokens[: position + 1])
            assert row[offset] == wanted, (
                f"{place} holds {row[offset]} for sequence {key} ({self.kv.residence(key)}), "
                f"not {wanted}"
            )

    def _started(self) -> set[int]:
        return {transfer.number for transfer in self.kv._parking._started}

    def _check_moves_nothing_used(self, before: set[int]) -> None:
        used = {block for table in self.kv._tables.values() for block in table.blocks}
        for transfer in self.kv._parking._started:
            if transfer.number not in before:
                assert used.isdisjoint(block for block, _ in transfer.pairs), (
                    f"transfer {transfer.number} moves a block that a resident sequence uses"
                )

    def drain(self) -> None:
        """End everything: whoever is not lost must become resident, and nothing may be left."""
        self._end_transfers()
        for key in [*self.live][:-1]:
            self._free(key, 0)
        for key, live in self.live.items():
            if not live.is_lost and self.kv.residence(key) is not Residence.RESIDENT:
                assert self.kv.resume(key) or self._fetch(key, 0), f"{key} cannot come back"
                self._end_transfers()
                assert self.kv.residence(key) is Residence.RESIDENT
                self.check()
        for key in [*self.live]:
            self._free(key, 0)
        self.check()
        assert self.kv.num_free_blocks == self.kv.num_blocks, "a block is lost"
        assert not any(self.kv.num_parked_blocks(tier) for tier in Tier), "a slot is lost"
        assert not self.kv.num_transfers

    def _end_transfers(self) -> None:
        self._step(0, 0)
        for number, running in [*self.running.items()]:
            for pair in sorted(running.remaining):
                self._copy(number, pair)
            self._finish(number, 0)
            self.check()
        self._step(0, 0)
