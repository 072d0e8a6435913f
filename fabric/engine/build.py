"""Puts an engine together from its settings, with no Ray."""

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from fabric.core.clock import Clock, MonotonicClock
from fabric.core.profile import Profile
from fabric.core.request import ServedModel, ServicePace
from fabric.core.sampling import RequestLimits
from fabric.engine.engine import Engine
from fabric.engine.executor import HostedModel, ReadyExecutor
from fabric.engine.local_executor import LocalExecutor
from fabric.engine.preparation import Preparation
from fabric.engine.settings import EngineSettings, WorkerSettings
from fabric.engine.text_output import TextOutput
from fabric.engine.threaded_executor import ThreadedExecutor
from fabric.engine.weight_plan import weights_of
from fabric.engine.worker import Worker
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.slabs import SlabPool
from fabric.models.progress import Progress
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.presence import Presence
from fabric.scheduler.residency import Residency
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

MAX_N = 16


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """One of an engine's models: what requests must know of it, and its measured times."""

    served: ServedModel
    tokenizer: Tokenizer
    profile: Profile | None


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine and its models; the scheduler is shown for tests and tools."""

    engine: Engine
    scheduler: Scheduler
    models: tuple[BuiltModel, ...]

    @property
    def served(self) -> ServedModel:
        """The first model, as requests must know it."""
        return self.models[0].served

    @property
    def tokenizer(self) -> Tokenizer:
        """The first model's tokenizer."""
        return self.models[0].tokenizer

    @property
    def profile(self) -> Profile | None:
        """The first model's measured times."""
        return self.models[0].profile


def build_engine(
    settings: EngineSettings,
    progress: Progress | None = None,
    clock: Clock | None = None,
    gang: ReadyExecutor | None = None,
) -> BuiltEngine:
    """Build the engine that serves some models: in this process, or driving a gang of workers.

    Those models that are to start on the device are loaded when it returns, as far as they fit.

    Args:
        settings: What to load and how to schedule.
        progress: Hears how far loading is.
        clock: The engine's time.
        gang: Workers that know the models; None: a worker in this process.

    Raises:
        SourceError: Weights can't be fetched.
        CheckpointError: They don't fit their model.
        ConfigError: The memory doesn't hold the models, or a profile's file is wrong.
        GroupError: The gang fails while it is profiled.
    """
    scheduler = settings.scheduler.settled_for(settings.worker.device)
    settings = replace(settings, scheduler=scheduler)
    executor = gang or open_local(settings.worker, progress, scheduler.async_scheduling is True)
    clock = clock or MonotonicClock()
    try:
        return _assemble(settings, executor, clock)
    except BaseException:
        executor.close()
        raise


def open_local(
    settings: WorkerSettings, progress: Progress | None = None, runs_ahead: bool = False
) -> LocalExecutor:
    """A worker in this process that has whole models, none of them loaded yet.

    Args:
        settings: What it loads.
        progress: Hears how far loading is.
        runs_ahead: Whether it computes on a thread of its own.

    Raises:
        SourceError: Weights can't be fetched.
        CheckpointError: They don't fit their model.
        ConfigError: The memory doesn't hold the models.
    """
    worker = Worker(settings, progress)
    return ThreadedExecutor(worker) if runs_ahead else LocalExecutor(worker)


def _assemble(settings: EngineSettings, executor: ReadyExecutor, clock: Clock) -> BuiltEngine:
    memory, worker = executor.memory, settings.worker
    slabs, numbers = SlabPool(memory.num_slabs), count(1)
    managers = [
        KVCacheManager(
            BlockPool(slabs, blocks_per_slab, notes_emptied=worker.parking.debug),
            worker.block_size,
            settings.prefix_cache,
            hosted.space,
            numbers,
        )
        for hosted, blocks_per_slab in zip(executor.models, memory.blocks_per_slab, strict=True)
    ]
    weights = weights_of(worker.models, executor.models, memory)
    accounts = [kv.account for kv in managers]
    config = replace(settings.scheduler, num_batches=executor.num_batches)
    residency = Residency(weights, slabs, accounts, config.residency)
    profiles = Preparation(settings, executor, residency, slabs, clock).run()
    models = [
        _built(hosted, profile, residency.expected_s(number), config)
        for number, (hosted, profile) in enumerate(zip(executor.models, profiles, strict=True))
    ]
    scheduled = [
        _scheduled(hosted, kv, profile)
        for hosted, kv, profile in zip(executor.models, managers, profiles, strict=True)
    ]
    presence = Presence(weights, slabs, residency, memory.slab_bytes)
    scheduler = Scheduler(config, scheduled, presence=presence)
    texts = TextOutput({model.served.card.model: model.tokenizer for model in models})
    return BuiltEngine(Engine(scheduler, executor, texts, clock), scheduler, tuple(models))


def _built(
    hosted: HostedModel,
    profile: Profile | None,
    start_s: tuple[float, float],
    config: SchedulerConfig,
) -> BuiltModel:
    card = hosted.card
    limits = RequestLimits(
        max_model_len=card.max_model_len,
        vocab_size=card.vocab_size,
        max_n=min(MAX_N, config.max_num_seqs),
    )
    fetch_s, load_s = start_s
    pace = ServicePace(load_s=load_s, fetch_s=fetch_s)
    if profile is not None:
        pace = replace(pace, prefill=profile.prefill, decode=profile.decode)
    served = ServedModel(card, hosted.defaults, limits, pace)
    return BuiltModel(served, Tokenizer.load(Path(card.tokenizer_path)), profile)


def _scheduled(hosted: HostedModel, kv: KVCacheManager, profile: Profile | None) -> ScheduledModel:
    card = hosted.card
    model = ScheduledModel(
        card.model,
        kv,
        frozenset(hosted.defaults.eos_token_ids),
        card.max_model_len,
        block_bytes=hosted.block_bytes,
    )
    return model if profile is None else replace(model, profile=profile)
