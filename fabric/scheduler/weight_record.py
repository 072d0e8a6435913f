"""What is known of one model's weights at a moment."""

from fabric.core.weights import WeightState
from fabric.kv.slabs import SlabAccount
from fabric.scheduler.weights import Access, Demand, ModelWeights

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_NEVER_S = float("-inf")
_NOT_YET_S = float("inf")


class WeightRecord:
    """One model of a device group: where its weights are, since when, and who wants them where.

    ``in_host``: a copy is in host memory, wherever else the weights are; with ``uses_host`` they
    come to the device by way of it. ``wish`` is where a person wants them since ``asked_at_s``,
    ``start`` where they shall be at first, and ``demand`` is the model's work at the last plan.
    ``since_s`` is when iterations could first run with the weights that are on the device, which
    are ``kept_until_s`` even without work; a model that has work and isn't open waits since
    ``waiting_since_s``. ``prior`` is the state before a move under way, and ``problem`` why the
    last one failed, if nothing has come or been asked for since.
    """

    __slots__ = (
        "access", "account", "active_at_s", "asked_at_s", "demand", "in_host", "is_begun",
        "kept_until_s", "load_s", "num_loads", "number", "pause_s", "pinned", "prior", "problem",
        "retry_at_s", "since_s", "spec", "start", "state", "uses_host", "waiting_since_s", "wish",
    )  # fmt: skip

    def __init__(
        self, number: int, spec: ModelWeights, account: SlabAccount, uses_host: bool
    ) -> None:
        self.number = number
        self.spec = spec
        self.account = account
        self.uses_host = uses_host
        self.state = self.prior = WeightState.COLD
        self.access = Access.ABSENT
        self.in_host = self.is_begun = False
        self.pinned = spec.pinned
        self.wish: WeightState | None = None
        self.start = WeightState.RESIDENT if spec.starts == "resident" else None
        if spec.starts == "host":
            self.start_in_host()
        self.demand: Demand | None = None
        self.waiting_since_s: float | None = None
        self.since_s = self.kept_until_s = self.active_at_s = _NEVER_S
        self.asked_at_s = self.retry_at_s = _NEVER_S
        self.pause_s = 0.0
        self.num_loads = 0
        self.load_s = 0.0
        self.problem = ""

    @property
    def num_on_device(self) -> int:
        """Sequences that hold blocks there."""
        return self.demand.num_on_device if self.demand else 0

    @property
    def is_on_disk_or_host(self) -> bool:
        """Whether the weights are off the device and don't move."""
        return self.state in (WeightState.COLD, WeightState.HOST)

    @property
    def is_loadable(self) -> bool:
        """Whether the next thing, on its way to the device, is a LOAD."""
        return self.state is (WeightState.HOST if self.uses_host else WeightState.COLD)

    @property
    def is_leaving(self) -> bool:
        """Whether a person wants it off the device."""
        return self.wish in (WeightState.HOST, WeightState.COLD)

    @property
    def held_slabs(self) -> int:
        """What its KV keeps from others: what is in use, or guaranteed."""
        account = self.account
        return account.num_slabs - account.num_spare + account.num_unmet

    @property
    def num_freed(self) -> int:
        """Slabs that others could have if its weights left, and nothing of its KV was in use."""
        return self.spec.num_slabs + self.held_slabs

    @property
    def num_freed_now(self) -> int:
        """Slabs that others could have if its weights left with its KV as it is."""
        in_use = self.account.num_slabs - self.account.num_idle
        return self.spec.num_slabs + max(0, self.held_slabs - in_use)

    def note_demand(self, demand: Demand, now: float) -> None:
        """The model has live sequences; whether they wait is seen by what it may do until now."""
        self.demand = demand
        self.active_at_s = now
        if self.access is Access.OPEN or not demand.is_waiting:
            self.waiting_since_s = None
        elif self.waiting_since_s is None:
            self.waiting_since_s = now

    def note_turn(self, now: float) -> None:
        """From now on, iterations can run: on the device, its turn begins."""
        if self.since_s == _NOT_YET_S and self.state is WeightState.RESIDENT:
            self.since_s = now

    def start_in_host(self) -> None:
        """Host memory, if that is on its way, is as near as it shall come at first."""
        self.start = WeightState.HOST if self.uses_host else None

    def begin(self, state: WeightState) -> None:
        """Its weights begin to move."""
        self.prior, self.state = self.state, state

    def fail(self, problem: str, now: float) -> None:
        """They didn't get there: they are where they were, and are left alone for a while."""
        self.state, self.is_begun, self.problem = self.prior, False, problem
        self.start = self.wish = None
        self.pause_s = min(max(2.0 * self.pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self.retry_at_s = now + self.pause_s

    def arrive_in_host(self) -> None:
        """A copy of them is in host memory."""
        self.state, self.in_host, self.problem = WeightState.HOST, True, ""

    def arrive(self, load_s: float, now: float) -> None:
        """They are on the device, after ``load_s``."""
        self.state, self.is_begun, self.start = WeightState.RESIDENT, False, None
        self.problem = ""
        self.since_s = _NOT_YET_S
        self.active_at_s = max(now, self.active_at_s)
        self.num_loads += 1
        self.load_s = load_s
        self.pause_s = 0.0
