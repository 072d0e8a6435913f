"""Puts an engine together from its settings, in this process, with no Ray and no sockets."""

from dataclasses import dataclass, replace
from pathlib import Path

from fabric.core.clock import Clock, MonotonicClock
from fabric.core.request import ServedModel
from fabric.core.sampling import RequestLimits
from fabric.engine.engine import Engine
from fabric.engine.executor import LocalExecutor
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
    settings: EngineSettings, progress: Progress | None = None, clock: Clock | None = None
) -> BuiltEngine:
    """Load a model and build the engine that serves it.

    Raises:
        SourceError: The weights can't be fetched.
        CheckpointError: They don't fit the model.
        ConfigError: The KV memory doesn't hold one block.
    """
    worker = Worker(settings.worker, progress)
    tokenizer = Tokenizer.load(Path(worker.card.tokenizer_path))
    eos_token_ids = frozenset(worker.defaults.eos_token_ids)
    max_model_len = worker.card.max_model_len
    config = replace(settings.scheduler, max_model_len=max_model_len)
    kv = KVCacheManager(worker.num_blocks, settings.worker.block_size, settings.prefix_cache)
    scheduler = Scheduler(config, kv, eos_token_ids)
    engine = Engine(
        scheduler, LocalExecutor(worker), TextOutput(tokenizer), clock or MonotonicClock()
    )
    limits = RequestLimits(
        max_model_len=max_model_len,
        vocab_size=worker.card.vocab_size,
        max_n=min(MAX_N, config.max_num_seqs),
    )
    served = ServedModel(worker.card, worker.defaults, limits)
    return BuiltEngine(engine, scheduler, served, tokenizer)
