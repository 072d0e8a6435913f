"""What the benchmark of scheduling policies counts, and that it tells policies no length."""

import importlib
import math
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from fabric.core.clock import VirtualClock
from fabric.core.profile import CopySpeed, Profile
from fabric.engine.engine import Engine
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.slabs import SlabPool
from fabric.kv.transfer import ParkingSpace
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

PERF = Path(__file__).resolve().parents[1] / "perf"


@pytest.fixture
def scheduling(monkeypatch):
    monkeypatch.syspath_prepend(PERF)
    before = set(sys.modules)
    yield importlib.import_module("scheduling")
    for name in set(sys.modules) - before:
        if str(PERF) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def bench(scheduling):
    profile = Profile(((1, 0.001), (512, 0.02)), ((1, 1, 0.001), (8, 1, 0.002)))
    return scheduling.Bench(scheduling.MODELS["stories260K"], profile, is_virtual=True)


def test_requests_end_at_their_length_and_ask_for_the_whole_context(scheduling, bench):
    lengths = [(5, 3), (9, 1), (30, 40)]
    served, _ = bench.run(scheduling.ROOMY, scheduling.CONTENDERS["fcfs"], lengths, [0.0, 0.0, 1.0])
    assert [(one.request_id, one.num_output_tokens) for one in served] == [
        ("1", 1),
        ("0", 3),
        ("2", 40),
    ]
    engine = importlib.import_module("scheduled_engine")
    for hint_sigma in (None, 1.0):
        requests = list(engine.make_open_requests(lengths, hint_sigma))
        ends = [len(one.prompt_token_ids) + one.sampling.max_tokens for one in requests]
        assert ends == [engine.CONTEXT] * 3
        assert all((one.expected_tokens is None) == (hint_sigma is None) for one in requests)


def test_a_simulated_run_repeats(scheduling, bench):
    lengths = scheduling.draw_lengths("heavy_tail", 60, 1, 4, 496)
    arrivals_s = scheduling.arrivals(60, 100.0, 1)
    runs = [
        bench.run(scheduling.SLOW, scheduling.CONTENDERS["proactive"], lengths, arrivals_s)
        for _ in range(2)
    ]
    assert runs[0][0] == runs[1][0]
    assert runs[0][1].swapped_bytes == runs[1][1].swapped_bytes


class SimulatedModels:
    """Models that share slabs on a virtual clock, the second ten times as slow as the first."""

    def __init__(self) -> None:
        copies = tuple(CopySpeed("host", way, 1e8, 1e-4) for way in ("out", "in"))
        profiles = [
            Profile(((1, s), (512, 20 * s)), ((1, 1, s), (8, 1, 2 * s)), copies, 1000)
            for s in (0.001, 0.01)
        ]
        spaces = [ParkingSpace(400, 0, 1000), ParkingSpace(400, 0, 5000)]
        slabs, numbers = SlabPool(12), count(1)
        self.kvs = [
            KVCacheManager(BlockPool(slabs, num_blocks), 16, False, space, numbers)
            for num_blocks, space in zip((10, 4), spaces, strict=True)
        ]
        models = [
            ScheduledModel(name, kv, frozenset(), 512, profile)
            for name, kv, profile in zip("ab", self.kvs, profiles, strict=True)
        ]
        config = SchedulerConfig(
            max_num_seqs=8, policy=PolicyConfig(name="mlfq"), preemption="swap"
        )
        module = importlib.import_module("profiled_executor")
        self.clock = VirtualClock()
        executor = module.ProfiledExecutor(profiles, self.clock, spaces)
        ends = importlib.import_module("scheduled_engine").HiddenEnds([100] * 20)
        self.engine = Engine(Scheduler(config, models), executor, ends, self.clock)

    def seconds(self, models: str) -> dict[str, float]:
        """Serve a request of each model named, and tell how long the last of each took."""
        requests = importlib.import_module("contenders").make_requests([(30, 100)] * len(models))
        named = [replace(one, model=models[int(one.request_id)]) for one in requests]
        serve, start_s = importlib.import_module("open_loop").serve, self.clock.now()
        served = serve(self.engine, named, [0.0] * len(named), self.clock)
        assert len(served) == len(models)
        assert self.clock.now() - start_s == pytest.approx(max(one.ended_s for one in served))
        return {models[int(one.request_id)]: one.ended_s for one in served}


@pytest.mark.usefixtures("scheduling")
def test_each_model_of_a_simulation_takes_the_times_of_its_own_profile():
    world = SimulatedModels()
    assert world.seconds("b")["b"] == pytest.approx(10 * world.seconds("a")["a"])


@pytest.mark.usefixtures("scheduling")
def test_copies_of_several_models_are_simulated_beside_iterations():
    world = SimulatedModels()
    world.seconds("ab" * 10)
    assert world.engine.report().swapped_out_bytes > 0
    assert world.engine.report().swapped_in_bytes == world.engine.report().swapped_out_bytes
    for kv in world.kvs:
        kv.check_invariants()
        assert kv.num_free_blocks == kv.num_blocks


def test_arrivals_have_exactly_the_rate_asked_for(scheduling):
    times_s = scheduling.arrivals(101, 20.0, 3)
    assert times_s[0] == 0.0
    assert times_s[-1] == pytest.approx(5.0)
    assert scheduling.arrivals(3, math.inf, 3) == [0.0] * 3


def test_who_ran_while_the_machine_was_busy_runs_again(scheduling, monkeypatch):
    slowdowns = {"fcfs": [1.0], "mlfq": [2.0, 1.2], "srw": [1.05]}
    monkeypatch.setattr(scheduling, "figures_of", lambda slowdown: {"slowdown": slowdown})
    by_policy = {scheduling.CONTENDERS[name]: iter(values) for name, values in slowdowns.items()}
    kept = scheduling.run_in_turns(lambda one: (next(by_policy[one]),), list(slowdowns))
    assert {name: one["slowdown"] for name, one in kept.items()} == {
        "fcfs": 1.0,
        "mlfq": 1.2,
        "srw": 1.05,
    }


def test_a_gain_is_above_one_where_less_time_or_more_tokens_a_second_are_needed(scheduling):
    rows = importlib.import_module("scheduling_rows")
    old, new = {"token_mean": 2.0, "tokens_per_s": 10.0}, {"token_mean": 0.5, "tokens_per_s": 20.0}
    assert rows.gain(new, old, "token_mean") == 4.0
    assert rows.gain(new, old, "tokens_per_s") == 2.0
