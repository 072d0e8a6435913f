"""One device's share of its group's models: their weights, KV memory and the runners over them."""

import contextlib
import queue
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from fabric.core.errors import ConfigError, SourceError
from fabric.core.plan import ParallelConfig
from fabric.core.weights import WeightMove, WeightOrder
from fabric.engine.arena import Arena
from fabric.engine.device import current, open_device
from fabric.engine.executor import Finished, HostedModel
from fabric.engine.memory_plan import DeviceMemory
from fabric.engine.model_runner import ModelRunner
from fabric.engine.mover import Mover
from fabric.engine.settings import WorkerSettings
from fabric.engine.weight_mover import WeightMover
from fabric.engine.worker_model import WorkerKernels, WorkerModel
from fabric.kv.transfer import WorkerOrders
from fabric.models.loader import RankPlace
from fabric.models.progress import NoProgress, Progress
from fabric.parallel.group import Group, SoloGroup
from fabric.scheduler.output import SchedulerOutput, StepResult
from kernels.dispatch import BackendUnavailable, select_backend
from kernels.ops import Backend
from kernels.scores import select_scores


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where in its device group a worker is: the ranks that it shares layers with, and tokens.

    ``tensor`` are the ranks of its stage, ``pipeline`` those at its place in every stage.
    """

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tensor: Group = field(default_factory=SoloGroup)
    pipeline: Group = field(default_factory=SoloGroup)
    layer_split: tuple[int, ...] | None = None

    @property
    def rank(self) -> RankPlace:
        """Which part of each model is here."""
        return RankPlace(self.parallel, self.pipeline.rank, self.tensor, self.layer_split)


class Worker:
    """Executes iterations of several models, or of a rank's shards of them, on one device.

    It begins without weights: :meth:`move` brings those that are ordered.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        progress: Progress | None = None,
        place: WorkerPlace | None = None,
    ) -> None:
        """Get to know the models; :meth:`allocate` must follow.

        Raises:
            SourceError: A model's files can't be fetched.
            CheckpointError: They don't fit the model.
            ConfigError: The device isn't there, a model can't be cut so, or its blocks can't be
                parked as asked for.
        """
        # The kernels bring their own threads; torch's would only compete with them.
        torch.set_num_threads(1)
        self.settings = settings
        self._place = place or WorkerPlace()
        self._device = open_device(settings.device)
        if self._device.type != "cpu" and self._place.parallel.num_devices > 1:
            raise ConfigError(
                f"device is {settings.device!r}; the {self._place.parallel.num_devices} devices of "
                "a group can only be cpu"
            )
        with current(self._device):
            self._backend = _open_backend(settings, self._device)
            rank = replace(self._place.rank, device=self._device)
            reader = select_scores(self._device.type, settings.backend, settings.num_threads)
            kernels = WorkerKernels(self._backend, reader)
            self._models = [
                WorkerModel(model, settings, kernels, rank, progress or NoProgress())
                for model in settings.models
            ]
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._arena: Arena
        self._runners: list[ModelRunner] = []
        self._mover: Mover | None = None
        self._weights: WeightMover | None = None

    @property
    def models(self) -> tuple[HostedModel, ...]:
        """The models that can be loaded, and what they take here."""
        return tuple(model.hosted for model in self._models)

    @property
    def answers(self) -> bool:
        """Whether this is the one rank whose samples the engine takes."""
        last_stage = self._place.parallel.pipeline - 1
        return self._place.pipeline.rank == last_stage and self._place.tensor.rank == 0

    def allocate(
        self, memory: DeviceMemory, on_finished: Callable[[Finished], None] | None = None
    ) -> None:
        """Reserve the KV memory, cut as on every rank.

        ``on_finished`` hears of finished moves, on the threads that make them, instead of
        :meth:`take_finished`.
        """
        on_finished = on_finished or self._finished.put
        with current(self._device):
            self._arena = self._new_arena(memory)
            blocks = []
            for place, model in enumerate(self._models):
                kv = model.view(self._arena, memory, place)
                self._runners.append(model.runner(kv, self._place.tensor, self._place.pipeline))
                blocks.append(model.blocks(kv))
        self._mover = Mover(blocks, self.settings.parking, on_finished)
        self._weights = WeightMover([model.weights for model in self._models], on_finished)

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration of a model that is there; only the last stage samples.

        One whose weights turn out not to come is given up by a worker that is alone; ranks of a
        gang can't do that, and don't begin before they are sure.
        """
        try:
            with current(self._device):
                return self._runners[output.model].execute(output)
        except SourceError as error:
            if self._place.parallel.num_devices > 1:
                raise
            return StepResult(output.step, (), error.message)

    def move(self, orders: WorkerOrders) -> None:
        """Free memory, begin moves and poison blocks; moves go on beside the next iterations."""
        assert self._mover is not None, "allocate comes first"
        freeing, bringing = _split(orders.weights)
        with current(self._device):
            self._move_weights(freeing)
            self._arena.punch(orders.punched)
            for blocks in orders.blocks:
                self._mover.move(blocks)
            self._move_weights(bringing)

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        """The moves finished since the last call; with a timeout, wait for the first."""
        results: list[Finished] = []
        with contextlib.suppress(queue.Empty):
            results.append(self._finished.get(timeout_s > 0, timeout_s))
            while True:
                results.append(self._finished.get_nowait())
        return results

    def close(self, leaves_parked: bool = False) -> None:
        """End the moves, and give back weights, and what blocks were parked in.

        With ``leaves_parked``, memory that outlives the worker waits for its successor.
        """
        if self._mover is not None:
            self._mover.close()
        if self._weights is not None:
            self._weights.close()
        for model in self._models:
            model.close(leaves_parked)

    def _new_arena(self, memory: DeviceMemory) -> Arena:
        # On a GPU, what is reserved is taken: no more than KV ever needs.
        is_host = self._device.type == "cpu"
        num_slabs = memory.num_slabs if is_host else memory.max_kv_slabs
        padding_bytes = max(model.hosted.block_bytes for model in self._models)
        return Arena(num_slabs, memory.slab_bytes, self._device, padding_bytes)

    def _move_weights(self, orders: list[WeightOrder]) -> None:
        assert self._weights is not None, "allocate comes first"
        for order in orders:
            if order.move is WeightMove.EVICT:
                self._runners[order.model].forget_weights()
            self._weights.move(order)


def _open_backend(settings: WorkerSettings, device: torch.device) -> Backend:
    try:
        return select_backend(device.type, settings.backend, settings.num_threads)
    except BackendUnavailable as error:
        raise ConfigError(str(error)) from error


def _split(orders: tuple[WeightOrder, ...]) -> tuple[list[WeightOrder], list[WeightOrder]]:
    """Orders that free memory, which others may need, and orders that take it."""
    freeing = [order for order in orders if order.move in (WeightMove.EVICT, WeightMove.DROP)]
    return freeing, [order for order in orders if order not in freeing]
