"""What to compute in each iteration, and what becomes of the tokens that it gives."""

from collections.abc import Sequence
from dataclasses import replace

from fabric.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestCancelled,
)
from fabric.core.request import FinishReason, GenerationRequest, LoadReport, ModelLoad, StopMatch
from fabric.core.status import RequestStatus
from fabric.core.weights import WeightOrder, WeightResult, WeightState
from fabric.kv.transfer import TransferResult, WorkerOrders
from fabric.scheduler.admission import check_fits
from fabric.scheduler.batch_chooser import BatchChooser
from fabric.scheduler.explain import explain
from fabric.scheduler.fairness import Fairness
from fabric.scheduler.intake import Intake
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.lengths import LengthEstimator
from fabric.scheduler.load import report_load
from fabric.scheduler.output import (
    RequestEnd,
    SchedulerOutput,
    SequenceUpdate,
    StepResult,
)
from fabric.scheduler.plan import StepPlan
from fabric.scheduler.planner import Planner
from fabric.scheduler.policies import PolicyConfig, make_policy
from fabric.scheduler.policy import Policy
from fabric.scheduler.presence import Presence
from fabric.scheduler.request import SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.room import Room
from fabric.scheduler.settings import SchedulerConfig
from fabric.scheduler.swapper import Swapper

_NO_ORDERS = WorkerOrders()


class Scheduler:
    """Decides each iteration: one model's sequences that rank first, in one token budget.

    A sequence is known by how many of its tokens have KV; whether the rest is a prompt, a chunk
    of one, or the last sampled token makes no difference. Blocks for all of a sequence's tokens
    are taken at its admission, so prompts that are half computed never compete for blocks. When
    blocks run out, the sequence that ranks last gives up its own: they are moved to a tier, or
    dropped and recomputed later, whichever is cheaper. Under a preemptive policy sequences that
    wait also take the places of those that rank after them.

    Several models take turns iteration by iteration: the next one is that whose best sequence
    ranks highest among those that can run. Iterations in flight may be of different models.

    Source: Orca (Yu et al., OSDI 2022), sections 3.1 and 4.1; vLLM (Kwon et al., SOSP 2023),
    section 4.5; chunked prefill: Sarathi-Serve (Agrawal et al., OSDI 2024), section 4; preemption
    at token granularity: FastServe (Wu et al.), section 4.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        models: Sequence[ScheduledModel],
        policy: Policy | None = None,
        presence: Presence | None = None,
    ) -> None:
        """Make a scheduler without requests.

        Args:
            config: Its limits.
            models: The models, and the blocks that it gives out for each.
            policy: Who goes first; None: the one that ``config`` names.
            presence: Where the models' weights are; None: on the device, for good.
        """
        self._config = config
        self._lengths = LengthEstimator()
        self._profiles = {model.model: model.profile for model in models}
        self._pool = RequestPool(
            models,
            policy or self._make_policy(config.policy),
            self._lengths,
            Fairness(config.fairness),
        )
        lanes = self._pool.lanes
        self._swappers = [Swapper(config, lane, self._pool) for lane in lanes]
        self._room = Room(self._pool, self._swappers)
        self._choosers = [BatchChooser(config, lane, self._pool, self._room) for lane in lanes]
        self._presence = presence or Presence()
        self._presence.follow(self._pool, self._room, self._choosers)
        self._planner = Planner(config, self._pool, self._room, self._choosers, self._presence)
        self._step = 0
        self._intake = Intake(self._pool)
        self._now = 0.0
        self._updated_s = 0.0
        self._starts_s: dict[int, float] = {}
        self._stall_s = 0.0
        self._stalled_since_s: float | None = None
        self._is_stuck = False
        self._orders = _NO_ORDERS
        self._plan = StepPlan(lanes[0], config.max_num_batched_tokens)

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished, its end not taken yet, or a move under way."""
        return bool(self._pool.requests or self._pool.ended or self.num_moves)

    @property
    def runs_ahead(self) -> bool:
        """Whether an iteration can be scheduled whose tokens one in flight samples."""
        return self._config.runs_ahead

    @property
    def num_moves(self) -> int:
        """Transfers of blocks, and moves of weights, that are under way."""
        return self._num_transfers + self._presence.num_moves

    @property
    def _num_transfers(self) -> int:
        return sum(swapper.num_under_way for swapper in self._swappers)

    def waits_for_copies(self, now: float) -> bool:
        """Whether transfers under way are to be over before anything else is computed."""
        if self._config.swap != "blocking":
            return False
        for swapper in self._swappers:
            swapper.abandon_late(now)
        return self._num_transfers > 0

    def add(self, request: GenerationRequest, now: float) -> None:
        """Queue a request.

        Raises:
            ModelNotFound: It is for a model of another group.
            InvalidRequest: It could not be served even if it were alone.
            Overloaded: The queue is full.
        """
        self._now = now
        lane = self._pool.lane_named(request.model)
        if lane is None:
            raise ModelNotFound(request.model, tuple(lane.model for lane in self._pool.lanes))
        if request.request_id in self._pool.requests:
            raise InvalidRequest.of("request_id", f"{request.request_id!r} is in use")
        check_fits(request, lane.kv, lane.spec.max_model_len, self._config.max_num_seqs)
        num_waiting = sum(len(lane.waiting) for lane in self._pool.lanes)
        if num_waiting >= self._config.max_num_waiting:
            raise Overloaded(
                f"{num_waiting} sequences wait already", self._pool.pace.time_for_s(num_waiting)
            )
        self._pool.add(request, lane, now)
        self._swappers[lane.number].note_arrival(len(request.prompt_token_ids), now)
        self._presence.note_arrival(lane, now)

    def cancel(self, request_id: str) -> None:
        """End a request and free its blocks; it may have ended already."""
        request = self._pool.requests.get(request_id)
        if request is not None:
            error = RequestCancelled("the request was cancelled")
            self._pool.abort(request, self._now, error, FinishReason.CANCELLED)

    def preempt(self, request_id: str, swap: bool = False) -> None:
        """Make a request's running sequences give up their blocks.

        With ``swap`` they are moved off the device if there is room, else dropped.
        """
        request = self._pool.requests.get(request_id)
        for sequence in list(request.sequences.values()) if request else ():
            if sequence.status is SequenceStatus.RUNNING:
                sequence.request.last_preemption = "it was told to"
                has_kv = swap and self._pool.num_parkable(sequence) > 0
                if not has_kv or not self._pool.park(sequence, self._now):
                    self._pool.recompute(sequence, self._now)

    def set_policy(self, config: PolicyConfig, now: float) -> None:
        """Order all requests, those that run among them, by another policy from now on.

        Raises:
            ConfigError: The policy can't be told so.
        """
        self._pool.change_policy(self._make_policy(config), now)

    def set_residence(
        self, model: str, state: WeightState | None, pinned: bool | None, now: float
    ) -> ModelLoad:
        """Have a model's weights brought somewhere, and pinned or not; None: as it is.

        Returns:
            How the model stands now: moves take longer.

        Raises:
            ModelNotFound: It is not one of the group's.
            InvalidRequest: The weights could never be there.
        """
        lane = self._pool.lane_named(model)
        if lane is None:
            raise ModelNotFound(model, tuple(lane.model for lane in self._pool.lanes))
        self._presence.ask(lane, state, pinned, now)
        return self._presence.load_of(lane)

    def schedule(self, now: float) -> SchedulerOutput:
        """Choose what the next iteration computes, after ending requests whose time is over.

        Orders that :meth:`take_orders` then gives are due before it.
        """
        self._now = now
        self._end_expired(now)
        for swapper in self._swappers:
            swapper.abandon_late(now)
        for sequence, rank in self._pool.policy.promote(now):
            self._pool.rerank(sequence, rank)
        weights = self._presence.plan(now)
        plan = self._planner.plan(now)
        for swapper in self._presence.open_of(self._swappers):
            swapper.move_ahead(plan, now)
        # Before anything is taken for a deadlock: what has just begun is under way.
        self._orders = self._gather_orders(weights, now)
        self._note_plan(plan, now)
        self._plan = plan
        self._step += 1
        if plan:
            self._starts_s[self._step] = now
        return plan.finish(self._step)

    def take_orders(self) -> WorkerOrders:
        """What workers are to do before the iteration scheduled last."""
        orders, self._orders = self._orders, _NO_ORDERS
        return orders

    def note_stall(self, seconds: float) -> None:
        """Count time in which nothing could be computed because of copies."""
        self._stall_s += seconds

    def finish_moves(self, results: Sequence[TransferResult | WeightResult], now: float) -> None:
        """Take in transfers and moves of weights that are over, done or failed."""
        for result in results:
            if isinstance(result, WeightResult):
                self._presence.finish(result, now)
            else:
                for swapper in self._swappers:
                    if swapper.finish(result, now):
                        break

    def update_from_output(
        self, output: SchedulerOutput, result: StepResult, now: float
    ) -> list[SequenceUpdate]:
        """Take in what an iteration computed; results come in the order of the iterations.

        Results for sequences that ended in the meantime are dropped. Of those that were preempted
        only the token is of use: nothing more of them was scheduled until it came.
        """
        self._now = now
        elapsed_s = now - max(self._starts_s.pop(output.step, now), self._updated_s)
        self._updated_s = now
        if result.error:
            self._intake.note_error(output.model, result.error, self._step)
        return self._intake.take_in(output, result, elapsed_s, now)

    def stop(self, key: int, match: StopMatch, now: float) -> None:
        """End a sequence in whose text a stop string was found; it may have ended already."""
        assert match.text is not None
        sequence = self._pool.sequences.get(key)
        if sequence is not None:
            self._pool.finish(sequence, now)

    def take_ended(self) -> list[RequestEnd]:
        """The requests that ended since the last call, however they ended."""
        ended = self._pool.ended
        self._pool.ended = []
        return ended

    def explain(self, now: float) -> tuple[RequestStatus, ...]:
        """Where each live request is, why it was preempted, and what that has cost."""
        return explain(self._pool, self._plan, now)

    def report(self) -> LoadReport:
        """The load at this moment; a request with any running sequence counts as running."""
        totals = self._intake.totals(self._stall_s)
        return report_load(self._pool, self._swappers, self._choosers, self._presence, totals)

    def _make_policy(self, config: PolicyConfig) -> Policy:
        return make_policy(config, self._profiles, self._config.max_num_seqs, self._lengths)

    def _end_expired(self, now: float) -> None:
        for request in self._pool.deadlines.pop_expired(now):
            error = DeadlineExceeded(f"{request.source.timeout_s} s were over before it finished")
            self._pool.abort(request, now, error, FinishReason.DEADLINE)

    def _note_plan(self, plan: StepPlan, now: float) -> None:
        """Count the time that copies take while nothing else can be done, and end deadlocks."""
        if self._stalled_since_s is not None:
            self._stall_s += now - self._stalled_since_s
            self._stalled_since_s = None
        was_stuck, self._is_stuck = self._is_stuck, False
        if plan or not self._pool.requests or self._starts_s:
            return
        if self._num_transfers:
            self._stalled_since_s = now
        elif not self._presence.num_moves:
            # What weights could give way to is looked at first.
            self._is_stuck = True
            self._presence.note_stuck(now)
            if was_stuck:
                self._room.end_deadlock(self._presence.open_of(self._pool.lanes), now)

    def _gather_orders(self, weights: tuple[WeightOrder, ...], now: float) -> WorkerOrders:
        given = [
            replace(orders, model=number)
            for number, swapper in enumerate(self._swappers)
            if (orders := swapper.take_orders(now))
        ]
        punched = self._presence.take_punched()
        if not (given or weights or punched):
            return _NO_ORDERS
        # A slab may go from one model to another here: poison first, whoever's it was.
        blocks = [replace(orders, transfers=()) for orders in given if orders.poisoned]
        blocks += [replace(orders, poisoned=()) for orders in given if orders.transfers]
        return WorkerOrders(tuple(blocks), weights, punched)
