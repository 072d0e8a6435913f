"""Who carries out the scheduler's iterations."""

from dataclasses import dataclass
from typing import Protocol

from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.core.weights import WeightResult
from fabric.engine.memory_plan import DeviceMemory, ModelBytes
from fabric.kv.transfer import ParkingSpace, TransferResult, WorkerOrders
from fabric.scheduler.output import SchedulerOutput, StepResult


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model that workers can load, and what it takes on the rank that it takes most on.

    ``weight_bytes`` on the device, ``host_bytes`` in host memory, for all ranks of one host;
    ``block_bytes`` for a KV block. ``space`` is where its blocks can be parked.
    """

    card: ModelCard
    defaults: GenerationDefaults
    weight_bytes: int
    host_bytes: int
    block_bytes: int
    space: ParkingSpace

    @property
    def size(self) -> ModelBytes:
        """What memory is planned for."""
        return ModelBytes(self.card.model, self.weight_bytes, self.block_bytes)


Finished = TransferResult | WeightResult


@dataclass(frozen=True, slots=True)
class ExecutorCosts:
    """What driving workers in other processes has cost since the start; zeros without any.

    ``control_bytes`` were sent to all workers, which took the driver ``control_s``. The rest is
    as the rank that samples saw it: ``execute_s`` in iterations, of which ``collective_s`` in
    its groups' operations, waiting for other ranks included.
    """

    control_bytes: int = 0
    control_s: float = 0.0
    execute_s: float = 0.0
    num_collectives: int = 0
    collective_bytes: int = 0
    collective_s: float = 0.0


class Executor(Protocol):
    """Drives a device group's workers; iterations run, and their results come, in order."""

    @property
    def num_batches(self) -> int:
        """Iterations that may be in flight: one for each pipeline stage.

        Source: Orca (Yu et al., OSDI 2022), section 4.2, n_workers.
        """
        ...

    @property
    def runs_ahead(self) -> bool:
        """Whether one more iteration may be in flight, of tokens that the one before samples.

        Every worker must then sample itself, as those of several stages don't.
        """
        ...

    @property
    def failure(self) -> str | None:
        """Why the workers can't go on; known also while nothing is in flight."""
        ...

    @property
    def costs(self) -> ExecutorCosts:
        """What driving the workers has cost."""
        ...

    def submit(self, output: SchedulerOutput) -> None:
        """Start an iteration on every worker.

        Raises:
            GroupError: The workers can't go on.
        """
        ...

    def collect(self) -> StepResult | None:
        """Wait for the oldest iteration in flight, and return what it sampled.

        None if it was interrupted; the iteration is still in flight.

        Raises:
            GroupError: The workers can't go on.
        """
        ...

    def interrupt(self) -> None:
        """Let a collect that waits, or the next one, return None; called on any thread."""
        ...

    def move(self, orders: WorkerOrders) -> None:
        """Make every worker move weights and blocks, after the iterations in flight.

        Raises:
            GroupError: The workers can't go on.
        """
        ...

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        """What all workers have finished since the last call: transfers and moves of weights.

        With ``timeout_s``, wait so long for the first of them.

        Raises:
            GroupError: The workers can't go on.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class ReadyExecutor(Executor, Protocol):
    """An executor whose workers know their models; no weights are loaded yet."""

    models: tuple[HostedModel, ...]
    memory: DeviceMemory
