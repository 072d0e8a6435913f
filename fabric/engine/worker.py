"""One device's share of a model: weights, KV memory and the runner over them."""

import contextlib
import queue
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.engine.cuda_copies import CudaBlocks
from fabric.engine.device_blocks import BlockFormat, CpuBlocks, DeviceBlocks
from fabric.engine.model_runner import ModelRunner
from fabric.engine.mover import Mover
from fabric.engine.sampler import Sampler
from fabric.engine.sequence_table import SequenceTable
from fabric.engine.settings import WorkerSettings
from fabric.engine.tiers import open_tiers, space_of
from fabric.engine.vocab_parallel import VocabShard
from fabric.kv.transfer import BlockOrders, ParkingSpace, TransferResult
from fabric.models.loader import RankPlace, load_model
from fabric.models.progress import NoProgress, Progress
from fabric.models.sources import resolve_source
from fabric.parallel.group import Group, SoloGroup
from fabric.scheduler.output import SchedulerOutput, StepResult
from kernels.dispatch import select_backend


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where in its device group a worker is: the ranks that it shares layers with, and tokens.

    ``tensor`` are the ranks of its stage, ``pipeline`` those at its place in every stage.
    """

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tensor: Group = field(default_factory=SoloGroup)
    pipeline: Group = field(default_factory=SoloGroup)
    layer_split: tuple[int, ...] | None = None


class Worker:
    """Loads a model, or a rank's shard of it, onto one device and executes iterations on it."""

    def __init__(
        self,
        settings: WorkerSettings,
        progress: Progress | None = None,
        place: WorkerPlace | None = None,
    ) -> None:
        """Load the weights; :meth:`allocate` must follow.

        Raises:
            SourceError: The weights can't be fetched.
            CheckpointError: They don't fit the model.
            ConfigError: The model can't be cut so, or ``kv_cache_bytes`` doesn't hold one block.
        """
        progress, self._place = progress or NoProgress(), place or WorkerPlace()
        # The kernels bring their own threads; torch's would only compete with them.
        torch.set_num_threads(1)
        self._settings = settings
        self._backend = select_backend(settings.device, settings.backend, settings.num_threads)
        local = resolve_source(settings.source, settings.cache_dir, progress)
        self._loaded = load_model(
            local,
            self._backend,
            settings.dtype,
            settings.max_model_len,
            progress,
            RankPlace(
                self._place.parallel,
                self._place.pipeline.rank,
                self._place.tensor,
                self._place.layer_split,
            ),
        )
        self.defaults: GenerationDefaults = self._loaded.defaults
        self.card: ModelCard = self._loaded.card(settings.model)
        shape = self._loaded.model.kv_cache_shape(1, settings.block_size)
        block = BlockFormat(shape[1:], self._loaded.dtype)
        self.max_num_blocks = settings.kv_cache_bytes // block.block_bytes
        if self.max_num_blocks < 1:
            raise ConfigError(
                f"kv_cache_bytes is {settings.kv_cache_bytes}; one block of {settings.model} "
                f"needs {block.block_bytes}"
            )
        rank = f"{self._place.pipeline.rank}.{self._place.tensor.rank}"
        owner = f"{settings.model} {rank} of {self._place.parallel}, {settings.source}"
        self._tiers = open_tiers(settings.parking, block, owner)
        self.space: ParkingSpace = space_of(self._tiers, block)
        self._moved: queue.SimpleQueue[TransferResult] = queue.SimpleQueue()
        self._runner: ModelRunner
        self._mover: Mover | None = None

    @property
    def answers(self) -> bool:
        """Whether this is the one rank whose samples the engine takes."""
        return self._loaded.model.shard.is_last and self._place.tensor.rank == 0

    def allocate(
        self, num_blocks: int, on_moved: Callable[[TransferResult], None] | None = None
    ) -> None:
        """Reserve the KV memory: as many blocks on every rank as the smallest has room for.

        ``on_moved`` hears of finished transfers, on copy threads, instead of :meth:`take_moved`.
        """
        loaded, settings = self._loaded, self._settings
        kv_cache = torch.zeros(
            loaded.model.kv_cache_shape(num_blocks, settings.block_size),
            dtype=loaded.dtype,
            device=settings.device,
        )
        table = SequenceTable(loaded.max_model_len, settings.block_size)
        config = loaded.config
        token_ids = loaded.model.shard.vocabulary(config)
        vocab = VocabShard(self._place.tensor, token_ids, config.vocab_size)
        sampler = Sampler(frozenset(loaded.defaults.eos_token_ids), vocab)
        self._runner = ModelRunner(
            loaded.model, self._backend, kv_cache, table, sampler, self._place.pipeline
        )
        self._mover = Mover(
            _device_blocks(kv_cache, settings),
            self._tiers,
            self.space.block_bytes,
            settings.parking,
            on_moved or self._moved.put,
        )

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration; only the last stage samples."""
        return self._runner.execute(output)

    def move(self, orders: BlockOrders) -> None:
        """Poison blocks and begin transfers; copies go on beside the iterations that follow."""
        assert self._mover is not None, "allocate comes first"
        self._mover.move(orders)

    def take_moved(self, timeout_s: float = 0.0) -> list[TransferResult]:
        """The transfers finished since the last call; with a timeout, wait for the first."""
        results: list[TransferResult] = []
        with contextlib.suppress(queue.Empty):
            results.append(self._moved.get(timeout_s > 0, timeout_s))
            while True:
                results.append(self._moved.get_nowait())
        return results

    def close(self, leaves_parked: bool = False) -> None:
        """End the copies, and give back what blocks were parked in.

        With ``leaves_parked``, memory that outlives the worker waits for its successor.
        """
        if self._mover is not None:
            self._mover.close()
        for tier in self._tiers.values():
            tier.close(leaves_parked)


def _device_blocks(kv_cache: Tensor, settings: WorkerSettings) -> DeviceBlocks:
    if kv_cache.is_cuda:
        return CudaBlocks(kv_cache, torch.cuda)
    return CpuBlocks(kv_cache, select_backend(settings.device, settings.backend, num_threads=1))
