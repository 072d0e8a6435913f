"""When the weights of a device group's models come and go."""

from collections.abc import Sequence

from fabric.core.weights import WeightOrder, WeightResult, WeightState
from fabric.kv.slabs import SlabAccount, SlabPool
from fabric.scheduler.settings import ResidencyConfig
from fabric.scheduler.weights import Access, Demand, ModelWeights, WeightFigures


class Residency:
    """Decides which models' weights are on the device, in host memory, or on disk only."""

    def __init__(
        self,
        weights: Sequence[ModelWeights],
        slabs: SlabPool,
        accounts: Sequence[SlabAccount],
        config: ResidencyConfig,
    ) -> None:
        raise NotImplementedError

    @property
    def has_work(self) -> bool:
        """Whether moves are under way."""
        raise NotImplementedError

    def note_arrival(self, model: int, now: float) -> None:
        """A request for the model has come: what its recent rate is counted from."""
        raise NotImplementedError

    def access(self, model: int) -> Access:
        """What may be done with the model now."""
        raise NotImplementedError

    def state(self, model: int) -> WeightState:
        """Where its weights are."""
        raise NotImplementedError

    def load(self, model: int) -> WeightFigures:
        """Its figures, for reports."""
        raise NotImplementedError

    def retry_after_s(self, model: int, now: float) -> float:
        """How long a model whose move has failed is left alone; 0.0: it isn't."""
        raise NotImplementedError

    def plan(self, demands: Sequence[Demand], now: float) -> tuple[WeightOrder, ...]:
        """What workers do with weights before the next iteration; ``demands``: the best first."""
        raise NotImplementedError

    def finish(self, result: WeightResult, now: float) -> None:
        """Note how a move stands."""
        raise NotImplementedError

    def ask(self, model: int, state: WeightState | None, pinned: bool | None, now: float) -> None:
        """Bring a model's weights to ``state``, and pin them or not; None: as is."""
        raise NotImplementedError

    def take_failed(self) -> list[tuple[int, str]]:
        """Models whose move has failed since the last call, and why."""
        raise NotImplementedError
