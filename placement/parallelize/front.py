"""A model cut into pipeline stages over devices, and all such cuts that are worth having."""

from collections.abc import Callable
from dataclasses import dataclass

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.parallelize.stage import MeshShape, StageCost
from placement.parallelize.stages_transfer import Transfer


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Layers ``first`` to ``end`` (not included) on a mesh whose first device is ``device``.

    ``receive`` is what taking the input from the stage before adds.
    """

    first: int
    end: int
    mesh: MeshShape
    device: int
    cost: StageCost
    receive: Transfer

    @property
    def num_layers(self) -> int:
        """Layers of the stage."""
        return self.end - self.first

    @property
    def seconds(self) -> float:
        """How long an iteration keeps the stage, phases weighted."""
        return self.cost.seconds + self.receive.seconds

    @property
    def phase_s(self) -> tuple[float, ...]:
        """How long an iteration of each phase keeps the stage."""
        received = self.receive.phase_s or (0.0,) * len(self.cost.phase_s)
        return tuple(a + b for a, b in zip(self.cost.phase_s, received, strict=True))


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """Stages that follow one another; they have all layers and all devices."""

    stages: tuple[StagePlan, ...]

    @property
    def latency_s(self) -> float:
        """Seconds of an iteration from the first stage's start to the last one's end."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def slowest_s(self) -> float:
        """Seconds that the slowest stage is kept: no more iterations a second than 1 over it."""
        return max(stage.seconds for stage in self.stages)

    @property
    def bytes(self) -> int:
        """Bytes of the fullest device."""
        return max(stage.cost.bytes for stage in self.stages)

    @property
    def num_devices(self) -> int:
        """Devices of all stages."""
        return sum(stage.mesh.num_devices for stage in self.stages)

    @property
    def parallel(self) -> ParallelConfig | None:
        """Stages times devices of each, which a device group runs; None if these differ."""
        sizes = {stage.mesh.num_devices for stage in self.stages}
        return ParallelConfig(len(self.stages), sizes.pop()) if len(sizes) == 1 else None

    @property
    def stage_shares(self) -> tuple[float, ...]:
        """Each stage's share of the latency; they sum to 1."""
        return tuple(stage.seconds / self.latency_s for stage in self.stages)

    @property
    def phase_s(self) -> tuple[float, ...]:
        """Seconds of an iteration of each phase, through all stages."""
        return tuple(sum(times) for times in zip(*(s.phase_s for s in self.stages), strict=True))


@dataclass(frozen=True, slots=True)
class Front:
    """Plans of which none is beaten in latency, slowest stage and bytes; by ascending latency."""

    plans: tuple[PipelinePlan, ...]

    @property
    def fastest(self) -> PipelinePlan:
        """The plan with the least latency.

        Raises:
            ConfigError: There is no plan; so do the others.
        """
        return self._least(lambda plan: (plan.latency_s, plan.slowest_s, plan.bytes))

    @property
    def highest_rate(self) -> PipelinePlan:
        """The plan whose slowest stage is the fastest."""
        return self._least(lambda plan: (plan.slowest_s, plan.latency_s, plan.bytes))

    @property
    def smallest(self) -> PipelinePlan:
        """The plan whose fullest device has the fewest bytes."""
        return self._least(lambda plan: (plan.bytes, plan.latency_s, plan.slowest_s))

    @property
    def best_filled(self) -> PipelinePlan:
        """The plan whose stages, if all were as slow as the slowest, would take the least.

        Source: AlpaServe (Li et al., OSDI 2023), section 4.1: the choice among numbers of stages.
        """
        return self._least(lambda plan: (len(plan.stages) * plan.slowest_s, plan.latency_s))

    def within(self, num_bytes: int) -> "Front":
        """The plans whose fullest device has no more bytes."""
        return Front(tuple(plan for plan in self.plans if plan.bytes <= num_bytes))

    def _least(self, key: Callable[[PipelinePlan], tuple[float, ...]]) -> PipelinePlan:
        if not self.plans:
            raise ConfigError("no way to cut the model over these devices fits their memory")
        return min(self.plans, key=key)
