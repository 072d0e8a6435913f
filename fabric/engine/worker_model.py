"""What a worker has of one of its models, beside the sequences that its runner knows."""

from dataclasses import dataclass

import torch

from fabric.engine.arena import Arena
from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.cuda_copies import CudaBlocks
from fabric.engine.cuda_graphs import CudaGraphRecorder
from fabric.engine.decode_graphs import Recorder
from fabric.engine.device_blocks import BlockFormat, CpuBlocks, DeviceBlocks
from fabric.engine.executor import HostedModel
from fabric.engine.forward_pass import ForwardPass, KVMemory
from fabric.engine.held_weights import HeldWeights
from fabric.engine.memory_plan import DeviceMemory
from fabric.engine.model_runner import ModelRunner
from fabric.engine.mover import ModelBlocks
from fabric.engine.sampler import Sampler
from fabric.engine.sequence_table import SequenceTable
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.step_inputs import CudaInputs, HostInputs, StepInputs
from fabric.engine.tiers import open_tiers, space_of, split_parking
from fabric.engine.vocab_parallel import VocabShard
from fabric.models.loader import RankPlace
from fabric.models.progress import Progress
from fabric.parallel.group import Group
from kernels.dispatch import select_backend
from kernels.ops import Backend
from kernels.scores import ScoreReader


@dataclass(frozen=True, slots=True)
class WorkerKernels:
    """What all models of a worker compute with."""

    backend: Backend
    scores: ScoreReader


class WorkerModel:
    """A model's weights, which may be anywhere, and where its blocks are parked."""

    def __init__(
        self,
        settings: ModelSettings,
        worker: WorkerSettings,
        kernels: WorkerKernels,
        place: RankPlace,
        progress: Progress,
    ) -> None:
        """Open the model's files and its part of the memory to park in.

        Raises:
            SourceError: The files can't be fetched.
            CheckpointError: They don't fit the model.
            ConfigError: The model can't be cut so, or its blocks can't be parked as asked for.
        """
        self._worker = worker
        self._place = place
        self._kernels = kernels
        self.weights = HeldWeights(settings, worker, kernels.backend, place, progress)
        block_shape = self.weights.kv_block_shape(worker.block_size)
        self._block = BlockFormat(block_shape, self.weights.dtype)
        rank = f"{place.stage}.{place.group.rank}"
        owner = f"{settings.model} {rank} of {place.parallel}, {settings.source}"
        parking = split_parking(worker.parking, len(worker.models))
        self._tiers = open_tiers(parking, self._block, owner)

    @property
    def hosted(self) -> HostedModel:
        """What the model is, and what it takes here."""
        weights = self.weights
        return HostedModel(
            weights.card,
            weights.defaults,
            weights.weight_bytes,
            weights.host_bytes,
            self._block.block_bytes,
            space_of(self._tiers, self._block),
        )

    def view(self, arena: Arena, memory: DeviceMemory, place: int) -> KVMemory:
        """The arena as the model sees it that is at this place among the worker's."""
        addresses = BlockAddresses.in_slabs(memory, place, self._block.block_bytes)
        return KVMemory(arena.view(self._block), addresses, arena.padding)

    def runner(self, kv: KVMemory, tensor: Group, pipeline: Group) -> ModelRunner:
        """What runs the model's iterations while its weights are there."""
        weights = self.weights
        table = SequenceTable(weights.max_model_len, self._worker.block_size, kv.addresses)
        token_ids = weights.shard.vocabulary(weights.config)
        vocab = VocabShard(tensor, token_ids, weights.config.vocab_size, self._kernels.scores)
        sampler = Sampler(frozenset(weights.defaults.eos_token_ids), vocab)
        recorder = self._recorder(tensor, pipeline)
        forward = ForwardPass(weights.model, kv, self._inputs(), pipeline, recorder)
        return ModelRunner(forward, self._kernels.backend, kv, table, sampler)

    def blocks(self, kv: KVMemory) -> ModelBlocks:
        """What the model's blocks are moved between."""
        device = self._device_blocks(kv)
        for tier in self._tiers.values():
            for memory in tier.memory:
                device.pin(memory)
        return ModelBlocks(device, self._tiers, self._block.block_bytes)

    def close(self, leaves_parked: bool = False) -> None:
        """Give back what blocks were parked in, or leave it to the worker's successor."""
        for tier in self._tiers.values():
            tier.close(leaves_parked)

    def _inputs(self) -> StepInputs:
        is_host = self._place.device.type == "cpu"
        return HostInputs() if is_host else CudaInputs(self._place.device, torch.cuda)

    def _recorder(self, tensor: Group, pipeline: Group) -> Recorder | None:
        """What records decodes, where nothing but this rank's GPU takes part in them."""
        is_alone = tensor.size == pipeline.size == 1
        is_on = self._worker.cuda_graphs and self._place.device.type == "cuda"
        return CudaGraphRecorder() if is_on and is_alone else None

    def _device_blocks(self, kv: KVMemory) -> DeviceBlocks:
        if kv.kv_cache.is_cuda:
            return CudaBlocks(kv.kv_cache, torch.cuda, kv.addresses)
        worker = self._worker
        backend = select_backend("cpu", worker.backend, num_threads=1)
        return CpuBlocks(kv.kv_cache, backend, kv.addresses)
