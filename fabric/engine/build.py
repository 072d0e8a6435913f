"""Puts an engine together from its settings, with no Ray."""

from dataclasses import dataclass, replace
from pathlib import Path

from fabric.core.clock import Clock, MonotonicClock
from fabric.core.request import ModelCard, ServedModel
from fabric.core.sampling import GenerationDefaults, RequestLimits
from fabric.engine.engine import Engine
from fabric.engine.executor import Executor, LoadedExecutor, LocalExecutor
from fabric.engine.settings import EngineSettings
from fabric.engine.text_output import TextOutput
from fabric.engine.worker import Worker
from fabric.kv.manager import KVCacheManager
from fabric.models.progress import Progress
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.scheduler import Scheduler

MAX_N = 16


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine and what it serves; the scheduler is shown for tests and tools."""

    engine: Engine
    scheduler: Scheduler
    served: ServedModel
    tokenizer: Tokenizer


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
        ConfigError: The KV memory doesn't hold one block.
    """
    if gang is not None:
        loaded = _Loaded(gang, gang.card, gang.defaults, gang.num_blocks)
    else:
        worker = Worker(settings.worker, progress)
        worker.allocate(worker.max_num_blocks)
        loaded = _Loaded(LocalExecutor(worker), worker.card, worker.defaults, worker.max_num_blocks)
    return _assemble(settings, loaded, clock or MonotonicClock())


@dataclass(frozen=True, slots=True)
class _Loaded:
    executor: Executor
    card: ModelCard
    defaults: GenerationDefaults
    num_blocks: int


def _assemble(settings: EngineSettings, loaded: _Loaded, clock: Clock) -> BuiltEngine:
    card = loaded.card
    tokenizer = Tokenizer.load(Path(card.tokenizer_path))
    config = replace(
        settings.scheduler,
        max_model_len=card.max_model_len,
        num_batches=loaded.executor.num_batches,
    )
    kv = KVCacheManager(loaded.num_blocks, settings.worker.block_size, settings.prefix_cache)
    scheduler = Scheduler(config, kv, frozenset(loaded.defaults.eos_token_ids))
    limits = RequestLimits(
        max_model_len=card.max_model_len,
        vocab_size=card.vocab_size,
        max_n=min(MAX_N, config.max_num_seqs),
    )
    return BuiltEngine(
        engine=Engine(scheduler, loaded.executor, TextOutput(tokenizer), clock),
        scheduler=scheduler,
        served=ServedModel(card, loaded.defaults, limits),
        tokenizer=tokenizer,
    )
