"""What belongs to one of the models that a scheduler serves."""

from dataclasses import dataclass, field

from fabric.core.profile import Profile
from fabric.kv.manager import KVCacheManager
from fabric.scheduler.request import SequenceState
from fabric.scheduler.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class ScheduledModel:
    """A model as its group's scheduler knows it.

    ``profile`` is how long its iterations and copies take; a rough guess if it isn't measured. A
    block takes ``block_bytes`` of the device.
    """

    model: str
    kv: KVCacheManager
    eos_token_ids: frozenset[int]
    max_model_len: int
    profile: Profile = field(default_factory=lambda: Profile.flat(0.01, 0.0005))
    block_bytes: int = 0


class Lane:
    """One model's sequences and their places: on the device, off it, on the way, or nowhere yet.

    ``running`` are on the device, in order; ``waiting`` are those that have no KV and the parked
    ones; ``away`` those whose KV is parked or on its way, by key. ``num_slots`` counts running
    sequences and those that arrive, siblings that a fork will add included. ``released`` are the
    keys that the workers are to forget. ``num_queued_tokens`` are those of prompts of requests
    that have no output yet, and ``num_requests`` are live. ``num_sampled`` tokens have come in all,
    ``num_sampled_before`` of them before its weights came.

    What iterations up to ``last_void_step`` give is void, because of ``last_error``; that can only
    be while its weights are arriving.

    Its weights were off the device for ``absent_s`` in all until now, or until ``absent_since_s``
    if they are (None: they aren't).
    """

    __slots__ = (
        "absent_s", "absent_since_s", "away", "is_arriving", "kv", "last_error", "last_void_step",
        "model", "num_queued_tokens", "num_requests", "num_sampled", "num_sampled_before",
        "num_slots", "number", "released", "running", "spec", "waiting",
    )  # fmt: skip

    def __init__(self, number: int, spec: ScheduledModel) -> None:
        self.number = number
        self.spec = spec
        self.model = spec.model
        self.kv = spec.kv
        self.running: list[SequenceState] = []
        self.waiting = WaitingQueue()
        self.away: dict[int, SequenceState] = {}
        self.released: list[int] = []
        self.num_slots = 0
        self.num_requests = 0
        self.num_queued_tokens = 0
        self.num_sampled = 0
        self.num_sampled_before = 0
        self.is_arriving = False
        self.last_void_step = 0
        self.last_error = ""
        self.absent_s = 0.0
        self.absent_since_s: float | None = None

    def note_presence(self, is_present: bool, now: float) -> None:
        """Count the time in which the weights are off the device."""
        if is_present and self.absent_since_s is not None:
            self.absent_s += now - self.absent_since_s
            self.absent_since_s = None
            self.num_sampled_before = self.num_sampled
        elif not is_present and self.absent_since_s is None:
            self.absent_since_s = now

    def absent_until_s(self, now: float) -> float:
        """Seconds off the device in all, until now."""
        since_s = now if self.absent_since_s is None else self.absent_since_s
        return self.absent_s + now - since_s

    @property
    def num_on_device(self) -> int:
        """Sequences that hold device memory: they run, or copies of theirs are under way."""
        return len(self.running) + sum(1 for item in self.away.values() if item.is_on_its_way)

    def best_order(self) -> tuple[float, ...] | None:
        """The order of the sequence that goes first, wherever it is; None: there is none."""
        head = self.waiting.peek()
        orders = [item.order for item in (head, *self.running[:1], *self.away.values()) if item]
        return min(orders, default=None)
