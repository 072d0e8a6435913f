"""A device group whose weights move and whose sequences hold slabs, as far as Residency sees it."""

from collections.abc import Iterable
from dataclasses import replace

from fabric.core.weights import WeightMove, WeightOrder, WeightResult, WeightState
from fabric.kv.slabs import SlabPool
from fabric.scheduler.residency import Residency
from fabric.scheduler.settings import ResidencyConfig
from fabric.scheduler.weights import Demand, ModelWeights

MB = 2**20
MODEL = ModelWeights(
    "model", num_slabs=4, weight_bytes=400 * MB, host_bytes=400 * MB, min_slabs=1, max_slabs=10,
    starts="cold", load_s=1.0, fetch_s=5.0,
)  # fmt: skip


class Kv:
    """One model's KV: slabs in use, and idle ones that cache prefixes."""

    def __init__(self, slabs: SlabPool) -> None:
        self.account = slabs.open(self)
        self.busy: list[int] = []
        self.idle: list[int] = []

    def give_up_idle(self) -> int:
        return self.idle.pop(0)

    def use(self, num_slabs: int) -> bool:
        """Have so many more in use, if that can be."""
        self.account.settle()
        for _ in range(num_slabs):
            if self.idle:
                self.account.note_idle(-1)
                self.busy.append(self.idle.pop())
            elif self.account.num_obtainable:
                self.busy.append(self.account.borrow())
            else:
                return False
        return True

    def free(self, keep_idle: bool = False) -> None:
        """Have none in use any more."""
        for slab in self.busy:
            if keep_idle:
                self.idle.append(slab)
                self.account.note_idle(1)
            else:
                self.account.give_back(slab)
        self.busy.clear()


class World:
    """Models ``0 ..`` of one group; every order is checked against the state that it starts from.

    Tests say what is in demand; ``work`` lets all moves that are under way succeed.
    """

    def __init__(
        self, models: Iterable[ModelWeights], num_slabs: int = 10, **config: float | None
    ) -> None:
        settings = {"idle_s": None, "host_bytes": 10_000 * MB, **config}
        self.models = [
            replace(item, model=f"m{number}", max_slabs=min(item.max_slabs, num_slabs))
            for number, item in enumerate(models)
        ]
        self.slabs = SlabPool(num_slabs)
        self.kv = [Kv(self.slabs) for _ in self.models]
        self.config = ResidencyConfig(**settings)  # type: ignore[arg-type]
        accounts = [kv.account for kv in self.kv]
        self.residency = Residency(self.models, self.slabs, accounts, self.config)
        self.now = 100.0
        self.demands: list[Demand] = []
        self.under_way: dict[int, WeightOrder] = {}
        self.numbers: set[int] = set()
        self.in_host: set[int] = set()

    def want(self, *models: int, on_device: Iterable[int] = ()) -> None:
        """These models have work, the best first; those in ``on_device`` have two on the device."""
        running = set(on_device)
        self.demands = [
            Demand(model, (float(rank),), model not in running, 2 * (model in running))
            for rank, model in enumerate(models)
        ]

    def plan(self) -> list[tuple[WeightMove, int]]:
        """What is ordered now."""
        states = [self.state(model) for model in range(len(self.models))]
        orders = self.residency.plan(self.demands, self.now)
        for order in orders:
            self._carry_out(order, states)
        self.check()
        return [(order.move, order.model) for order in orders]

    def work(self, seconds: float = 1.0, error: str = "") -> None:
        """Time passes, and all moves under way end."""
        self.now += seconds
        for number in list(self.under_way):
            self.finish(number, seconds, error)

    def finish(self, number: int, seconds: float, error: str = "") -> None:
        """One move ends."""
        order = self.under_way.pop(number)
        if order.move is WeightMove.FETCH and error:
            self.in_host.remove(order.model)
        self.residency.finish(WeightResult(number, error, 1, seconds), self.now)
        self.check()

    def settle(self) -> list[tuple[WeightMove, int]]:
        """Plan and work until nothing moves any more; what was ordered."""
        ordered: list[tuple[WeightMove, int]] = []
        while orders := self.plan() or self.under_way:
            ordered += orders if isinstance(orders, list) else []
            self.work()
        return ordered

    def state(self, model: int) -> WeightState:
        return self.residency.state(model)

    def states(self) -> str:
        """The first letter of each model's state: c, f, h, l, r."""
        return "".join(self.state(model)[0] for model in range(len(self.models)))

    def accesses(self) -> str:
        """The first letter of what each model may do: o, d, c, a."""
        return "".join(self.residency.access(i).name[0].lower() for i in range(len(self.models)))

    def check(self) -> None:
        """Assert that slabs, host memory and states agree."""
        self.slabs.check_invariants()
        on_device = (WeightState.RESIDENT, WeightState.LOADING)
        charged = [
            item.num_slabs
            for model, item in enumerate(self.models)
            if self.state(model) in on_device
        ]
        assert self.slabs.num_charged == sum(charged) + self.residency.num_kept_slabs
        host_bytes = sum(self.models[model].host_bytes for model in self.in_host)
        assert host_bytes <= self.config.host_bytes

    def _carry_out(self, order: WeightOrder, states: list[WeightState]) -> None:
        assert order.number not in self.numbers
        self.numbers.add(order.number)
        before, model = states[order.model], order.model
        if order.move is WeightMove.FETCH:
            assert before is WeightState.COLD
            assert all(other.move is not WeightMove.FETCH for other in self.under_way.values())
            self.in_host.add(model)
            states[model] = WeightState.FETCHING
        elif order.move is WeightMove.LOAD:
            assert before in (WeightState.HOST, WeightState.COLD)
            assert (before is WeightState.HOST) == (model in self.in_host)
            states[model] = WeightState.LOADING
        elif order.move is WeightMove.EVICT:
            assert before is WeightState.RESIDENT
            states[model] = WeightState.HOST if model in self.in_host else WeightState.COLD
        else:
            assert before in (WeightState.HOST, WeightState.RESIDENT)
            self.in_host.remove(model)
            states[model] = WeightState.COLD if before is WeightState.HOST else before
        if order.move in (WeightMove.FETCH, WeightMove.LOAD):
            self.under_way[order.number] = order
