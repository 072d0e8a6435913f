"""Puts an engine together from its settings, with no Ray."""

from dataclasses import dataclass, replace
from pathlib import Path

from fabric.core.clock import Clock, MonotonicClock
from fabric.core.profile import Profile
from fabric.core.request import ServedModel
from fabric.core.sampling import RequestLimits
from fabric.engine.engine import Engine
from fabric.engine.executor import LoadedExecutor, LocalExecutor
from fabric.engine.profile_store import find_profile
from fabric.engine.settings import EngineSettings, WorkerSettings
from fabric.engine.text_output import TextOutput
from fabric.engine.worker import Worker
from fabric.kv.manager import KVCacheManager
from fabric.models.progress import Progress
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.scheduler import Scheduler

MAX_N = 16


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine and what it serves; scheduler and profile are shown for tests and tools."""

    engine: Engine
    scheduler: Scheduler
    served: ServedModel
    tokenizer: Tokenizer
    profile: Profile | None


def build_engine(
    settings: EngineSettings,
    progress: Progress | None = None,
    clock: Clock | None = None,
    gang: LoadedExecutor | None = None,
) -> BuiltEngine:
    """Build the engine that serves a model: in this process, or driving a gang of workers.

    Args:
        settings: What to load and how to schedule.
        progress: Hears how far loading is.
        clock: The engine's time.
        gang: Workers that have loaded the model; None: load it here, whole.

    Raises:
        SourceError: The weights can't be fetched.
        CheckpointError: They don't fit the model.
        ConfigError: The KV memory doesn't hold one block, or the profile's file is wrong.
        GroupError: The gang fails while it is profiled.
    """
    executor = gang or load_whole(settings.worker, progress)
    return _assemble(settings, executor, clock or MonotonicClock())


def load_whole(settings: WorkerSettings, progress: Progress | None = None) -> LocalExecutor:
    """Load a whole model in this process.

    Raises:
        SourceError: The weights can't be fetched.
        CheckpointError: They don't fit the model.
        ConfigError: The KV memory doesn't hold one block.
    """
    worker = Worker(settings, progress)
    worker.allocate(worker.max_num_blocks)
    return LocalExecutor(worker)


def _assemble(settings: EngineSettings, executor: LoadedExecutor, clock: Clock) -> BuiltEngine:
    card, defaults = executor.card, executor.defaults
    tokenizer = Tokenizer.load(Path(card.tokenizer_path))
    config = replace(
        settings.scheduler,
        max_model_len=card.max_model_len,
        num_batches=executor.num_batches,
    )
    kv = KVCacheManager(
        executor.num_blocks,
        settings.worker.block_size,
        settings.prefix_cache,
        executor.space,
        settings.worker.parking.debug,
    )
    profile = find_profile(settings, executor)
    scheduler = Scheduler(config, kv, frozenset(defaults.eos_token_ids), profile=profile)
    limits = RequestLimits(
        max_model_len=card.max_model_len,
        vocab_size=card.vocab_size,
        max_n=min(MAX_N, config.max_num_seqs),
    )
    return BuiltEngine(
        engine=Engine(scheduler, executor, TextOutput(tokenizer), clock),
        scheduler=scheduler,
        served=ServedModel(card, defaults, limits),
        tokenizer=tokenizer,
        profile=profile,
    )
