"""Whatever the ranks: models take turns, nobody waits for ever, and the books stay right."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from fabric.core.weights import WeightMove, WeightState
from fabric.scheduler.residency import PATIENCE
from fabric.scheduler.weights import Access, Demand, ModelWeights
from tests.unit.residency_world import MB, MODEL, World

STEP_S = 0.5
CLEAR_S = 1.0
SERVICE_S = 2.0
NUM_STEPS = 1200

# The rank of a model's best sequence, from its number, arrival, and whether it is on the device.
Rank = Callable[[int, float, bool, random.Random], float]
RANKS: dict[str, Rank] = {
    "first come": lambda model, arrived_s, is_open, rng: arrived_s,
    "last come": lambda model, arrived_s, is_open, rng: -arrived_s,
    "fixed priorities": lambda model, arrived_s, is_open, rng: model,
    "whoever is there": lambda model, arrived_s, is_open, rng: not is_open,
    "whoever is not": lambda model, arrived_s, is_open, rng: is_open,
    "dice": lambda model, arrived_s, is_open, rng: rng.random(),
}


@dataclass
class Sequences:
    """One model's sequences: when each came, and for how long it has yet to run."""

    waiting: list[tuple[float, float]] = field(default_factory=list)
    running: list[tuple[float, float]] = field(default_factory=list)
    closed_s: float = 0.0
    shut_since_s: float | None = None
    longest_wait_s: float = 0.0
    num_served: int = 0


class Group(World):
    """A world with sequences that are admitted, run, and are cleared when their model has to go."""

    def __init__(self, models: list[ModelWeights], rank: Rank, seed: int, **config: float) -> None:
        super().__init__(models, **config)
        self.rng = random.Random(seed)
        self.rank = rank
        self.sequences = [Sequences() for _ in models]
        self.ends: dict[int, tuple[float, float]] = {}
        self.failure_rate = 0.0
        self.num_failed = 0

    def arrive(self, model: int) -> None:
        self.sequences[model].waiting.append((self.now, SERVICE_S))
        self.residency.note_arrival(model, self.now)

    def step(self) -> None:
        self.now += STEP_S
        self.demands = self._demands()
        before = self.states()
        self.plan()
        loading = {i for i, state in enumerate(before) if state == "l"}
        assert all(self.states()[model] == "l" for model in loading)
        for model, _ in self.residency.take_failed():
            self.num_failed += len(self.sequences[model].waiting)
            self.sequences[model].waiting.clear()
        for model in range(len(self.models)):
            self._run(model)
        self._move()

    def _demands(self) -> list[Demand]:
        demands = []
        for model, item in enumerate(self.sequences):
            if arrivals := [arrived_s for arrived_s, _ in item.waiting + item.running]:
                is_open = self.residency.access(model) is Access.OPEN
                rank = self.rank(model, min(arrivals), is_open, self.rng)
                demand = Demand(model, (rank, model), bool(item.waiting), len(item.running))
                demands.append(demand)
        return sorted(demands, key=lambda demand: demand.rank)

    def _run(self, model: int) -> None:
        item, access = self.sequences[model], self.residency.access(model)
        if item.closed_s == 0.0:
            self._serve(model)
        is_closed = access in (Access.CLEARING, Access.ABSENT)
        item.closed_s = item.closed_s + STEP_S if is_closed else 0.0
        if item.closed_s >= CLEAR_S:
            item.waiting += item.running
            self._leave(model, len(item.running))
        while access is Access.OPEN and item.waiting and len(item.running) < 3:
            if not self.kv[model].use(1):
                break
            item.running.append(item.waiting.pop(0))
        self._note_wait(item, access)

    def _serve(self, model: int) -> None:
        """What ran since the last step comes nearer to its end."""
        item = self.sequences[model]
        item.running = sorted(
            ((arrived_s, left_s - STEP_S) for arrived_s, left_s in item.running),
            key=lambda running: running[1],
        )
        num_over = sum(left_s <= 0.0 for _, left_s in item.running)
        self._leave(model, num_over)
        item.num_served += num_over

    def _note_wait(self, item: Sequences, access: Access) -> None:
        if access is Access.OPEN or not item.waiting:
            item.shut_since_s = None
        elif item.shut_since_s is None:
            item.shut_since_s = self.now
        else:
            item.longest_wait_s = max(item.longest_wait_s, self.now - item.shut_since_s)

    def _leave(self, model: int, number: int) -> None:
        kv = self.kv[model]
        for _ in range(number):
            self.sequences[model].running.pop(0)
            slab = kv.busy.pop()
            if self.rng.random() < 0.5:
                kv.account.give_back(slab)
            else:
                kv.idle.append(slab)
                kv.account.note_idle(1)

    def _move(self) -> None:
        for number, order in list(self.under_way.items()):
            model = self.models[order.model]
            is_load = order.move is WeightMove.LOAD
            seconds = model.load_s if is_load else model.fetch_s
            end_s, seconds = self.ends.setdefault(number, (self.now + seconds, seconds))
            if self.now >= end_s:
                error = "torn cable" if self.rng.random() < self.failure_rate else ""
                self.finish(number, seconds, error)


def six(rng: random.Random) -> list[ModelWeights]:
    return [
        replace(
            MODEL,
            num_slabs=rng.randint(2, 5),
            min_slabs=rng.randint(0, 2),
            host_bytes=rng.randint(1, 4) * 100 * MB,
            load_s=rng.choice((0.5, 1.0, 2.0)),
            fetch_s=rng.choice((1.0, 3.0)),
            starts=rng.choice(("resident", "host", "cold")),
            pinned=number == 5 and rng.random() < 0.5,
        )
        for number in range(6)
    ]


def bound_s(models: list[ModelWeights], config_min_stay: float) -> float:
    load_s = max(model.load_s for model in models)
    turn_s = config_min_stay * load_s
    clear_s = CLEAR_S + SERVICE_S + 4 * STEP_S
    each_s = turn_s + max(model.fetch_s for model in models) + clear_s + load_s + 4 * STEP_S
    return PATIENCE * turn_s + (len(models) + 1) * each_s


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_nobody_waits_longer_than_the_bound_although_everybody_always_has_work(rank):
    seed = list(RANKS.values()).index(rank)
    models = six(random.Random(seed))
    host_bytes = (0, 600 * MB, 10_000 * MB)[seed % 3]
    group = Group(models, rank, seed, num_slabs=14, host_bytes=host_bytes)
    check_waits(group)


def test_small_models_that_come_and_go_do_not_keep_a_large_one_out_of_host_memory():
    rng = random.Random(114)
    group = Group(
        six(rng), RANKS["whoever is not"], 114, num_slabs=14, host_bytes=400 * MB, min_stay=1.0
    )
    check_waits(group)


def check_waits(group: Group) -> None:
    """Let everybody have work all the time."""
    for _ in range(NUM_STEPS):
        for model, item in enumerate(group.sequences):
            if len(item.waiting) + len(item.running) < 4:
                group.arrive(model)
        group.step()
    waits_s = [item.longest_wait_s for item in group.sequences]
    assert max(waits_s) <= bound_s(group.models, group.config.min_stay)
    assert min(item.num_served for item in group.sequences) > 0


@pytest.mark.parametrize("seed", range(8))
def test_books_stay_right_and_all_are_served_when_moves_fail_no_more(seed):
    rng = random.Random(seed)
    rank = list(RANKS.values())[seed % len(RANKS)]
    config = {"host_bytes": rng.choice((0, 500, 900, 9000)) * MB, "idle_s": rng.choice((2.0, 60.0))}
    group = Group(six(rng), rank, seed, num_slabs=14, **config)
    group.failure_rate = 0.2
    num_arrived = 0
    for number in range(NUM_STEPS):
        if number == 800:
            group.failure_rate = 0.0
        if number < 1000 and rng.random() < 0.3:
            group.arrive(rng.randrange(6))
            num_arrived += 1
        if rng.random() < 0.01:
            model, state = rng.randrange(5), rng.choice(list(WeightState)[::2])
            if state is not WeightState.HOST or group.in_host >= {model}:
                group.residency.ask(model, state, None, group.now)
        group.step()
    while any(item.waiting or item.running for item in group.sequences):
        group.step()
        assert group.now < 100.0 + 2 * NUM_STEPS * STEP_S
    num_served = sum(item.num_served for item in group.sequences)
    assert num_served + group.num_failed == num_arrived
    assert group.residency.num_kept_slabs == 0
    assert not group.models[5].pinned or group.state(5) is WeightState.RESIDENT


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_two_models_that_do_not_fit_together_take_turns_of_four_loads_at_least(rank):
    models = [replace(MODEL, num_slabs=8, starts="host")] * 2
    group = Group(models, rank, 1, num_slabs=10)
    evicted: list[tuple[float, int]] = []
    loaded: dict[int, float] = {}
    stays_s = []
    for _ in range(NUM_STEPS):
        for model, item in enumerate(group.sequences):
            if len(item.waiting) + len(item.running) < 4:
                group.arrive(model)
        before = group.states()
        group.step()
        for model, (old, new) in enumerate(zip(before, group.states(), strict=True)):
            if new == "r" and old != "r":
                loaded[model] = group.now
            elif old == "r" and new != "r":
                stays_s.append(group.now - loaded[model])
                evicted.append((group.now, model))
    assert len(stays_s) > 4
    assert min(stays_s) >= 4.0
    assert all(first[1] != second[1] for first, second in pairwise(evicted))
