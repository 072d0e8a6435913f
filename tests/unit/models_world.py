"""A scheduler of several models on modelled devices whose memory and weights are really shared."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from fabric.core.profile import Profile
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.core.weights import WeightMove, WeightOrder, WeightResult
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.slabs import SlabPool
from fabric.kv.transfer import ParkingSpace, Transfer, TransferResult, WorkerOrders
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.output import RequestEnd, SchedulerOutput, StepResult
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.presence import Presence
from fabric.scheduler.residency import Residency
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig
from fabric.scheduler.weights import ModelWeights
from tests.unit.scheduling_world import BLOCK_BYTES, EOS, POISON, ModelledWorker, expected_output

BLOCK_SIZE = 4


@dataclass(frozen=True)
class ModelShape:
    """What one model takes: its weights in slabs, and how many of its blocks a slab holds."""

    weight_slabs: int = 2
    blocks_per_slab: int = 4
    pinned: bool = False
    min_slabs: int = 0


@dataclass
class Device:
    """Memory that has one owner a slab: what one model stores there is gone for the others."""

    shapes: Sequence[ModelShape]
    workers: list[ModelledWorker]
    owners: dict[int, int] = field(default_factory=dict)
    resident: set[int] = field(default_factory=set)
    moving: deque[WeightOrder] = field(default_factory=deque)
    transfers: list[tuple[int, Transfer]] = field(default_factory=list)
    num_loads: int = 0

    def move(self, orders: WorkerOrders) -> None:
        for order in orders.weights:
            self._move_weights(order)
        for slab in orders.punched:
            if slab in self.owners:
                self._wipe(self.owners[slab], slab)
        for blocks in orders.blocks:
            worker = self.workers[blocks.model]
            worker.move(WorkerOrders((replace(blocks, transfers=()),)))
            worker.transfers.extend(blocks.transfers)
            self.transfers += [(blocks.model, transfer) for transfer in blocks.transfers]

    def execute(self, output: SchedulerOutput) -> StepResult:
        model, worker = output.model, self.workers[output.model]
        assert model in self.resident, f"model {model} runs without its weights"
        before = dict(worker.slots)
        result = worker.execute(output)
        self._take_slabs(
            model, {block for (block, _), v in worker.slots.items() if before.get((block, _)) != v}
        )
        return result

    def finish_transfer(self, rng: Random, fails: float) -> TransferResult:
        model, transfer = self.transfers.pop(rng.randrange(len(self.transfers)))
        error = "it broke" if rng.random() < fails else ""
        result = self.workers[model].copy(transfer, error)
        self._take_slabs(model, {block for block, _ in transfer.pairs})
        return result

    def finish_move(self, fails: bool) -> WeightResult:
        order = self.moving.popleft()
        if order.move is WeightMove.LOAD:
            if fails:
                self.resident.discard(order.model)
            else:
                self.num_loads += 1
        error = "the disk is gone" if fails else ""
        return WeightResult(order.number, error, seconds=0.5)

    def _move_weights(self, order: WeightOrder) -> None:
        if order.move is WeightMove.EVICT:
            assert order.model in self.resident
            self.resident.remove(order.model)
            self.workers[order.model].rows.clear()
        elif order.move in (WeightMove.FETCH, WeightMove.LOAD):
            self.moving.append(order)
            if order.move is WeightMove.LOAD:
                self.resident.add(order.model)

    def _take_slabs(self, model: int, blocks: set[int]) -> None:
        for slab in {block // self.shapes[model].blocks_per_slab for block in blocks}:
            if self.owners.get(slab, model) != model:
                self._wipe(self.owners[slab], slab)
            self.owners[slab] = model

    def _wipe(self, model: int, slab: int) -> None:
        size = self.shapes[model].blocks_per_slab
        slots = self.workers[model].slots
        for place in [p for p in slots if p[0] // size == slab]:
            slots[place] = POISON


class ModelsWorld:
    """Steps the scheduler of a group with several models, and keeps what comes out.

    A lazy device carries out what it is told, in order, only when results are waited for.
    """

    def __init__(
        self,
        shapes: Sequence[ModelShape],
        num_slabs: int,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008
        num_slots: tuple[int, int] = (0, 0),
        profile: Profile | None = None,
        is_lazy: bool = False,
        **limits: object,
    ) -> None:
        self.config = SchedulerConfig(**{"max_num_seqs": 8, "policy": policy, **limits})  # type: ignore[arg-type]
        self.slabs, numbers = SlabPool(num_slabs), count(1)
        space = ParkingSpace(*num_slots, block_bytes=BLOCK_BYTES)
        self.managers = [
            KVCacheManager(
                BlockPool(self.slabs, shape.blocks_per_slab, notes_emptied=True),
                BLOCK_SIZE, True, space, numbers,
            )
            for shape in shapes
        ]  # fmt: skip
        num_pinned = sum(s.weight_slabs + max(1, s.min_slabs) for s in shapes if s.pinned)
        weights = [
            ModelWeights(
                f"m{i}", s.weight_slabs, 1000, 1000, s.min_slabs,
                num_slabs - s.weight_slabs
                - (num_pinned - s.pinned * (s.weight_slabs + max(1, s.min_slabs))),
                s.pinned, load_s=0.5, fetch_s=1.0,
            )
            for i, s in enumerate(shapes)
        ]  # fmt: skip
        self.residency = Residency(
            weights, self.slabs, [kv.account for kv in self.managers], self.config.residency
        )
        models = [
            ScheduledModel(f"m{i}", kv, frozenset({EOS}), self.config.max_model_len)
            for i, kv in enumerate(self.managers)
        ]
        if profile is not None:
            models = [replace(model, profile=profile) for model in models]
        self.scheduler = Scheduler(
            self.config, models, presence=Presence(weights, self.slabs, self.residency)
        )
        self.device = Device(shapes, [ModelledWorker(BLOCK_SIZE) for _ in shapes])
        self.is_lazy = is_lazy
        self.told: deque[WorkerOrders | SchedulerOutput] = deque()
        self.results: dict[int, StepResult] = {}
        self.in_flight: deque[SchedulerOutput] = deque()
        self.num_batches = self.config.num_batches + self.config.runs_ahead
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[str, RequestEnd] = {}
        self.requests: dict[str, GenerationRequest] = {}
        self.ran: list[int] = []
        self.now = 0.0

    def add(
        self, name: str, model: int, num_prompt: int, max_tokens: int = 4, **options: object
    ) -> GenerationRequest:
        start = (len(self.requests) + 1) * 10_000
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        request = GenerationRequest(
            name, f"m{model}", tuple(range(start, start + num_prompt)), sampling, **options  # type: ignore[arg-type]
        )  # fmt: skip
        self.scheduler.add(request, self.now)
        self.requests[name] = request
        return request

    def step(
        self, rng: Random | None = None, fails: float = 0.0, load_fails: float = 0.0
    ) -> SchedulerOutput:
        """One iteration of a second; without ``rng`` every copy and move is over before it."""
        chance = rng or Random(0)
        self.now += 1.0
        results: list[TransferResult | WeightResult] = []
        while self.device.transfers and (rng is None or chance.random() < 0.6):
            results.append(self.device.finish_transfer(chance, fails))
        while self.device.moving and (rng is None or chance.random() < 0.4):
            results.append(self.device.finish_move(chance.random() < load_fails))
        self.scheduler.finish_moves(results, self.now)
        output = self.scheduler.schedule(self.now)
        self.told.append(self.scheduler.take_orders())
        if output.scheduled:
            self.ran.append(output.model)
            self.told.append(output)
            self.in_flight.append(output)
        if not (self.is_lazy and self.in_flight):
            self._carry_out()
        self.now += 1.0
        if self.in_flight and (len(self.in_flight) >= self.num_batches or not output.scheduled):
            self._take_in(self.in_flight.popleft())
        for end in self.scheduler.take_ended():
            self.ends[end.request_id] = end
        return output

    def _carry_out(self, step: int = 2**63) -> None:
        """Let the device do what it was told, in order, until it has run the iteration."""
        while self.told and step not in self.results:
            told = self.told.popleft()
            if isinstance(told, SchedulerOutput):
                self.results[told.step] = self.device.execute(told)
            else:
                self.device.move(told)

    def _take_in(self, output: SchedulerOutput) -> None:
        self._carry_out(output.step)
        result = self.results.pop(output.step)
        for update in self.scheduler.update_from_output(output, result, self.now):
            self.tokens.setdefault((update.request_id, update.index), []).extend(update.token_ids)

    def run(self, max_steps: int = 2000, **chances: object) -> None:
        """Step until every request has ended."""
        for _ in range(max_steps):
            self.step(**chances)  # type: ignore[arg-type]
            if not self.scheduler.has_work and not self.in_flight:
                return
        raise AssertionError("requests don't end")

    def check_tokens(self) -> None:
        """Every request that ended by itself has the tokens that it has alone."""
        for name, end in self.ends.items():
            if end.error is None:
                assert self.tokens[name, 0] == expected_output(self.requests[name], 0)
