"""One device's share of a model: weights, KV memory and the runner over them."""

import torch

from fabric.core.errors import ConfigError
from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.engine.model_runner import ModelRunner
from fabric.engine.sampler import Sampler
from fabric.engine.sequence_table import SequenceTable
from fabric.engine.settings import WorkerSettings
from fabric.engine.vocab_parallel import VocabShard
from fabric.models.loader import load_model
from fabric.models.progress import NoProgress, Progress
from fabric.models.sources import resolve_source
from fabric.scheduler.output import SchedulerOutput, StepResult
from kernels.dispatch import select_backend


class Worker:
    """Loads a model onto one device and executes iterations on it."""

    def __init__(self, settings: WorkerSettings, progress: Progress | None = None) -> None:
        """Load the weights and reserve the KV memory.

        Raises:
            SourceError: The weights can't be fetched.
            CheckpointError: They don't fit the model.
            ConfigError: ``kv_cache_bytes`` doesn't hold one block.
        """
        progress = progress or NoProgress()
        # The kernels bring their own threads; torch's would only compete with them.
        torch.set_num_threads(1)
        backend = select_backend(settings.device, settings.backend, settings.num_threads)
        local = resolve_source(settings.source, settings.cache_dir, progress)
        loaded = load_model(local, backend, settings.dtype, settings.max_model_len, progress)
        shape = loaded.model.kv_cache_shape(1, settings.block_size)
        block_bytes = torch.Size(shape).numel() * loaded.dtype.itemsize
        self.num_blocks = settings.kv_cache_bytes // block_bytes
        if self.num_blocks < 1:
            raise ConfigError(
                f"kv_cache_bytes is {settings.kv_cache_bytes}; one block of {settings.model} "
                f"needs {block_bytes}"
            )
        self.defaults: GenerationDefaults = loaded.defaults
        self.card: ModelCard = loaded.card(settings.model)
        kv_cache = torch.zeros(
            (self.num_blocks, *shape[1:]), dtype=loaded.dtype, device=settings.device
        )
        table = SequenceTable(loaded.max_model_len, settings.block_size)
        vocab = VocabShard.whole(loaded.config.vocab_size)
        sampler = Sampler(frozenset(loaded.defaults.eos_token_ids), vocab)
        self._runner = ModelRunner(loaded.model, backend, kv_cache, table, sampler)

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration."""
        return self._runner.execute(output)
