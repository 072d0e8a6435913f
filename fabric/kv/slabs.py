"""The slabs of a device's memory: who has them, and who can have one more."""

from collections import deque
from heapq import heappop, heappush
from typing import Protocol


class SlabHolder(Protocol):
    """What borrows slabs, and can be asked for those that hold nothing but cached prefixes."""

    def give_up_idle(self) -> int:
        """Drop what its least recently used idle slab caches; it no longer has that slab."""


class SlabAccount:
    """What one model has of a pool's slabs, and what it may have; every query takes constant time.

    ``num_idle`` of its ``num_slabs`` hold nothing that is in use; ``num_spare`` of those are beyond
    its guarantee, so another model may have them. It gets ``most`` slabs at most.
    """

    __slots__ = (
        "_least", "_num_unmet", "_slabs", "holder", "most", "num_idle", "num_slabs", "num_spare",
    )  # fmt: skip

    def __init__(self, slabs: "SlabPool", holder: SlabHolder) -> None:
        self.holder = holder
        self.most = slabs.num_slabs
        self.num_slabs = 0
        self.num_idle = 0
        self.num_spare = 0
        self._least = 0
        self._num_unmet = 0
        self._slabs = slabs

    @property
    def num_unmet(self) -> int:
        """Slabs that it lacks of its guarantee."""
        return self._num_unmet

    @property
    def num_obtainable(self) -> int:
        """Slabs that it could borrow now, without touching what others are guaranteed."""
        num_left = self._slabs.slack - self.num_spare + self._num_unmet
        return max(0, min(num_left, self.most - self.num_slabs))

    @property
    def num_owed(self) -> int:
        """Idle slabs that it may not use again: guarantees of others can only be met with them."""
        return max(0, self.num_spare - max(0, self._slabs.slack))

    @property
    def num_usable(self) -> int:
        """Slabs that it could use by what it has and what it can borrow, all in all."""
        num_left = self._slabs.slack - self.num_spare + self._num_unmet
        if num_left < 0:
            return self.num_slabs - min(self.num_spare, -num_left)
        num_usable = self.num_slabs + num_left
        if num_usable > self.most:  # Not by min and max: the scheduler asks most often for this.
            return self.most if self.most > self.num_slabs else self.num_slabs
        return num_usable

    def set_bounds(self, least: int, most: int) -> None:
        """Guarantee ``least`` slabs, those that it has among them, and allow ``most``.

        A guarantee takes nothing from those who use it: what is missing can be had as soon as it
        is free or idle, and nobody else gets that. It is 0 while the model isn't resident.
        """
        assert 0 <= least <= most <= self._slabs.num_slabs
        self._least, self.most = least, most
        self._weigh()

    def borrow(self) -> int:
        """Take a slab: a free one, else an idle one of another model; one must be obtainable."""
        assert self.num_obtainable > 0
        slab = self._slabs.lend(self)
        self.num_slabs += 1
        self._weigh()
        return slab

    def give_back(self, slab: int) -> None:
        """Return a slab that holds nothing, and isn't noted as idle."""
        self._slabs.take_back(self, slab)
        self.num_slabs -= 1
        self._weigh()

    def note_idle(self, change: int) -> None:
        """Count one more idle slab, or one less."""
        self.num_idle += change
        assert 0 <= self.num_idle <= self.num_slabs
        self._weigh()

    def give_up_idle(self) -> None:
        """Have the holder return the idle slab that it used least recently."""
        slab = self.holder.give_up_idle()
        self._slabs.take_back(self, slab)
        self.num_idle -= 1
        self.num_slabs -= 1
        self._weigh()

    def settle(self) -> None:
        """Return the idle slabs that are owed, so that all which are left may be used again."""
        for _ in range(self.num_owed):
            self.give_up_idle()

    def check_invariants(self) -> None:
        """Assert that what is spare and what is unmet follow from what it has."""
        assert 0 <= self.num_idle <= self.num_slabs
        assert self.num_spare == min(self.num_idle, max(0, self.num_slabs - self._least))
        assert self._num_unmet == max(0, self._least - self.num_slabs)
        assert self.num_usable == self.num_slabs + self.num_obtainable - self.num_owed

    def _weigh(self) -> None:
        num_beyond = self.num_slabs - self._least
        num_spare = max(0, min(self.num_idle, num_beyond))
        num_unmet = max(0, -num_beyond)
        self._slabs.slack += num_spare - self.num_spare + self._num_unmet - num_unmet
        self.num_spare, self._num_unmet = num_spare, num_unmet


class SlabPool:
    """One device's memory as slabs ``0 .. num_slabs - 1``: lent to KV, or charged for weights.

    Weights lie outside of the arena, so only their number counts: what is lent and charged
    together is never more than ``num_slabs``. ``slack`` is what is free, and idle beyond its
    model's guarantee, less what guarantees still lack: whoever borrows beyond its own guarantee,
    and whoever charges, takes from it. If it is negative, guarantees have grown while others use
    the memory. The same calls always give the same ids.

    A slab that was lent once has memory of the system until it is punched. ``charge`` has as many
    free ones punched as it takes for memory of both kinds to stay within the budget.

    Source: kvcached and Prism (arXiv 2505.04021), memory that models share by demand.
    """

    __slots__ = (
        "_accounts", "_clean", "_dirty", "_owners", "_punched", "num_charged", "num_slabs", "slack",
    )  # fmt: skip

    def __init__(self, num_slabs: int) -> None:
        assert num_slabs > 0
        self.num_slabs = num_slabs
        self.num_charged = 0
        self.slack = num_slabs
        self._accounts: list[SlabAccount] = []
        self._owners: list[SlabAccount | None] = [None] * num_slabs
        self._clean = list(range(num_slabs))
        self._dirty: deque[int] = deque()
        self._punched: list[int] = []

    @property
    def num_free(self) -> int:
        """Slabs' worth of memory that nobody has."""
        return len(self._dirty) + len(self._clean) - self.num_charged

    @property
    def num_chargeable(self) -> int:
        """Slabs that weights could have now: free and idle ones, but what guarantees still lack."""
        return max(0, self.slack)

    def open(self, holder: SlabHolder) -> SlabAccount:
        """The account of one more model, which may have everything and is guaranteed nothing."""
        account = SlabAccount(self, holder)
        self._accounts.append(account)
        return account

    def charge(self, num_slabs: int) -> None:
        """Take so many slabs' worth of memory for weights, from idle slabs as needed."""
        assert 0 <= num_slabs <= self.num_chargeable
        while self.num_free < num_slabs:
            self._reclaim(None)
        self.num_charged += num_slabs
        self.slack -= num_slabs
        while self.num_free < len(self._dirty):
            slab = self._dirty.popleft()
            heappush(self._clean, slab)
            self._punched.append(slab)

    def discharge(self, num_slabs: int) -> None:
        """Give back memory that weights had."""
        assert 0 <= num_slabs <= self.num_charged
        self.num_charged -= num_slabs
        self.slack += num_slabs

    def take_punched(self) -> tuple[int, ...]:
        """Slabs whose memory must go back to the system, before weights or anyone get to use it."""
        if not self._punched:
            return ()
        punched = tuple(dict.fromkeys(self._punched))
        self._punched.clear()
        return punched

    def lend(self, account: SlabAccount) -> int:
        """Find a slab for an account: :meth:`SlabAccount.borrow` is the way to ask."""
        if not self.num_free:
            self._reclaim(account)
        slab = self._dirty.pop() if self._dirty else heappop(self._clean)
        self._owners[slab] = account
        self.slack -= 1
        return slab

    def take_back(self, account: SlabAccount, slab: int) -> None:
        """Free a slab of an account: :meth:`SlabAccount.give_back` is the way to say so."""
        assert self._owners[slab] is account, f"slab {slab} isn't lent to who returns it"
        self._owners[slab] = None
        self._dirty.append(slab)
        self.slack += 1

    def check_invariants(self) -> None:
        """Assert that every slab is in one hand, and that sums and the memory bound hold."""
        free = [*self._dirty, *self._clean]
        assert sorted(free) == [s for s, owner in enumerate(self._owners) if owner is None]
        for account in self._accounts:
            account.check_invariants()
            assert self._owners.count(account) == account.num_slabs
        num_lent = sum(account.num_slabs for account in self._accounts)
        assert self.num_free >= 0
        assert num_lent + self.num_free + self.num_charged == self.num_slabs
        assert num_lent + len(self._dirty) + self.num_charged <= self.num_slabs
        num_spare = sum(account.num_spare for account in self._accounts)
        num_unmet = sum(account.num_unmet for account in self._accounts)
        assert self.slack == self.num_free + num_spare - num_unmet

    def _reclaim(self, borrower: SlabAccount | None) -> None:
        """Free an idle slab of whoever has most to spare, the first of equals."""
        others = (account for account in self._accounts if account is not borrower)
        max(others, key=_num_spare).give_up_idle()


def _num_spare(account: SlabAccount) -> int:
    return account.num_spare
