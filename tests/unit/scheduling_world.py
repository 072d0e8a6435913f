"""A scheduler with a modelled worker that notices every wrong, stale or overwritten KV entry."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fabric.core.profile import Profile
from fabric.core.request import FinishReason, GenerationRequest, Objectives
from fabric.core.sampling import SamplingParams
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.transfer import (
    Direction,
    ParkingSpace,
    Tier,
    Transfer,
    TransferResult,
    WorkerOrders,
)
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.output import (
    NewSequence,
    RequestEnd,
    SampledTokens,
    ScheduledSequence,
    SchedulerOutput,
    SequenceUpdate,
    StepResult,
)
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

EOS = 2
POISON = -1
BLOCK_BYTES = 64
NextToken = Callable[[SamplingParams, int, int, int], int]
# Which transfers are over before an iteration, and with what error.
Copies = Callable[[list[Transfer]], list[tuple[Transfer, str]]]


def hashed_token(sampling: SamplingParams, index: int, position: int, history: int) -> int:
    """A token that depends on all tokens before it, on the seed and on the sequence."""
    return hash((history, sampling.seed, index, position)) % 23 + EOS


def extend_history(history: int, token: int) -> int:
    """Stands for the KV at a position: it depends on every token up to there."""
    return hash((history, token))


def expected_output(request: GenerationRequest, index: int) -> list[int]:
    """What a sequence gives when it is computed alone and at once."""
    history = 0
    for token in request.prompt_token_ids:
        history = extend_history(history, token)
    sampling, position, output = request.sampling, len(request.prompt_token_ids), list[int]()
    while len(output) < sampling.max_tokens:
        token = hashed_token(sampling, index, position, history)
        output.append(token)
        history = extend_history(history, token)
        position += 1
        if token == EOS and not sampling.ignore_eos and len(output) > sampling.min_tokens:
            break
    return output


@dataclass
class Row:
    index: int
    tokens: list[int]
    blocks: list[int]
    sampling: SamplingParams
    sampled: int | None = None


@dataclass
class ModelledWorker:
    """Copies happen when ``copy`` is called: late, in any order, or never."""

    block_size: int
    next_token: NextToken = hashed_token
    rows: dict[int, Row] = field(default_factory=dict)
    slots: dict[tuple[int, int], int] = field(default_factory=dict)
    parked: dict[tuple[Tier, int, int], int] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)

    def move(self, orders: WorkerOrders) -> None:
        for blocks in orders.blocks:
            for block in blocks.poisoned:
                for offset in range(self.block_size):
                    self.slots[block, offset] = POISON
            self.transfers.extend(blocks.transfers)

    def copy(self, transfer: Transfer, error: str = "") -> TransferResult:
        """Carry a transfer out, or half of it if it fails."""
        self.transfers.remove(transfer)
        pairs = transfer.pairs[: len(transfer.pairs) // 2] if error else transfer.pairs
        for block, slot in pairs:
            for offset in range(self.block_size):
                here, there = (block, offset), (transfer.tier, slot, offset)
                if transfer.direction is Direction.OUT:
                    self.parked[there] = self.slots.get(here, POISON)
                else:
                    self.slots[here] = self.parked[there]
        num_bytes = 0 if error else len(transfer.pairs) * BLOCK_BYTES
        return TransferResult(transfer.number, error, num_bytes, copy_s=0.001)

    def execute(self, output: SchedulerOutput) -> StepResult:
        for key in output.released:
            del self.rows[key]
        self._copy(output.copies)
        for new in output.new_sequences:
            self._learn(new)
        for item in output.scheduled:
            self._update_table(item)
        for item in output.scheduled:
            self._store(item)
        return StepResult(
            output.step, tuple(self._sample(i) for i in output.scheduled if i.num_samples)
        )

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        blocks = {source for source, _ in copies} | {target for _, target in copies}
        assert len(blocks) == len({s for s, _ in copies}) + len(copies), "a block has two roles"
        for source, target in copies:
            for offset in range(self.block_size):
                self.slots[target, offset] = self.slots.get((source, offset), -1)

    def _learn(self, new: NewSequence) -> None:
        assert new.key not in self.rows
        self.rows[new.key] = Row(new.index, list(new.token_ids), list(new.block_ids), new.sampling)

    def _update_table(self, item: ScheduledSequence) -> None:
        row = self.rows[item.key]
        row.tokens.extend(item.new_token_ids)
        if item.num_computed_tokens + item.num_new_tokens > len(row.tokens):
            assert row.sampled is not None, "it was given no token"
            row.tokens.append(row.sampled)
        blocks = row.blocks
        if item.replaced_block is not None:
            position, block = item.replaced_block
            blocks[position] = block
        blocks.extend(item.new_block_ids)

    def _slot(self, row: Row, position: int) -> tuple[int, int]:
        return row.blocks[position // self.block_size], position % self.block_size

    def _store(self, item: ScheduledSequence) -> None:
        row = self.rows[item.key]
        end = item.num_computed_tokens + item.num_new_tokens
        assert item.num_new_tokens > 0
        assert end <= len(row.tokens)
        assert (item.num_samples > 0) == (end == len(row.tokens))
        for position in range(item.num_computed_tokens, end):
            before = self.slots[self._slot(row, position - 1)] if position else 0
            self.slots[self._slot(row, position)] = extend_history(before, row.tokens[position])

    def _sample(self, item: ScheduledSequence) -> SampledTokens:
        row = self.rows[item.key]
        history = 0
        # Every row reads after all rows have written, so a write into another's block shows.
        for position, token in enumerate(row.tokens):
            history = extend_history(history, token)
            assert self.slots[self._slot(row, position)] == history
        tokens = tuple(
            self.next_token(row.sampling, row.index + i, len(row.tokens), history)
            for i in range(item.num_samples)
        )
        if item.num_samples == 1:
            row.sampled = tokens[0]
        return SampledTokens(item.key, tokens)


def all_at_once(transfers: list[Transfer]) -> list[tuple[Transfer, str]]:
    """Every copy is over before the next iteration."""
    return [(transfer, "") for transfer in transfers]


class World:
    """Steps a scheduler and its worker, and keeps what comes out.

    A lazy worker carries out what it is told, in order, only when its results are waited for.
    """

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        prefix_cache: bool = True,
        next_token: NextToken = hashed_token,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008
        num_slots: tuple[int, int] = (0, 0),
        copies: Copies | None = None,
        profile: Profile | None = None,
        is_lazy: bool = False,
        **limits: object,
    ) -> None:
        space = ParkingSpace(*num_slots, block_bytes=BLOCK_BYTES)
        pool = BlockPool.fixed(num_blocks, notes_emptied=True)
        self.kv = KVCacheManager(pool, block_size, prefix_cache, space)
        self.config = SchedulerConfig(**{"max_num_seqs": 8, "policy": policy, **limits})  # type: ignore[arg-type]
        model = ScheduledModel("model", self.kv, frozenset({EOS}), self.config.max_model_len)
        if profile is not None:
            model = replace(model, profile=profile)
        self.scheduler = Scheduler(self.config, (model,))
        self.copies = copies or all_at_once
        self.worker = ModelledWorker(block_size, next_token)
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.reasons: dict[tuple[str, int], FinishReason] = {}
        self.updates: list[SequenceUpdate] = []
        self.ends: dict[str, RequestEnd] = {}
        self.is_lazy = is_lazy
        self.told: deque[WorkerOrders | SchedulerOutput] = deque()
        self.results: dict[int, StepResult] = {}
        self.in_flight: deque[SchedulerOutput] = deque()
        self.num_batches = self.config.num_batches + self.config.runs_ahead
        self.now = 0.0
        self.num_added = 0
        self.num_steps = 0

    def add(
        self,
        request_id: str,
        prompt: int | Sequence[int],
        priority: int = 0,
        timeout_s: float | None = None,
        salt: str = "",
        objectives: Objectives = Objectives(),  # noqa: B008
        **sampling: object,
    ) -> GenerationRequest:
        """Queue a request; a prompt given by its length shares no token with any other."""
        self.num_added += 1
        if isinstance(prompt, int):
            prompt = range(self.num_added * 10_000, self.num_added * 10_000 + prompt)
        params = SamplingParams(**{"max_tokens": 4, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
        request = GenerationRequest(
            request_id,
            "model",
            tuple(prompt),
            params,
            timeout_s,
            priority,
            salt,
            objectives=objectives,
        )
        self.scheduler.add(request, self.now)
        return request

    def step(self) -> SchedulerOutput:
        """Start an iteration and, unless more may be in flight, take in the oldest's results."""
        self.now += 1.0
        self.num_steps += 1
        moved = [self.worker.copy(*copy) for copy in self.copies(self.worker.transfers)]
        self.scheduler.finish_moves(moved, self.now)
        output = self.scheduler.schedule(self.now)
        self.told.append(self.scheduler.take_orders())
        assert output.num_tokens <= self.config.max_num_batched_tokens
        assert len({item.key for item in output.scheduled}) == len(output.scheduled)
        if output.scheduled:
            self.told.append(output)
            self.in_flight.append(output)
        if not (self.is_lazy and self.in_flight):
            self._carry_out()
        self.now += 1.0
        self.updates = []
        if self.in_flight and (not output.scheduled or len(self.in_flight) >= self.num_batches):
            oldest = self.in_flight.popleft()
            self._carry_out(oldest.step)
            result = self.results.pop(oldest.step)
            self.updates = self.scheduler.update_from_output(oldest, result, self.now)
        for update in self.updates:
            self._note(update)
        self.take_ended()
        self.kv.check_invariants()
        return output

    def run(self, max_steps: int = 2000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError(f"still working after {max_steps} iterations")

    def settle(self) -> None:
        """Let all copies come to an end, those that nobody waits for any more among them."""
        self._carry_out()
        moved = [self.worker.copy(transfer) for transfer in self.worker.transfers.copy()]
        self.scheduler.finish_moves(moved, self.now)
        self.kv.check_invariants()

    def take_ended(self) -> None:
        for end in self.scheduler.take_ended():
            assert end.request_id not in self.ends
            self.ends[end.request_id] = end

    def counts(self, output: SchedulerOutput) -> list[int]:
        """How many tokens each scheduled sequence computes."""
        return [item.num_new_tokens for item in output.scheduled]

    def key_of(self, request_id: str, index: int = 0) -> int:
        return self.scheduler._pool.requests[request_id].sequences[index].key

    def _carry_out(self, step: int = 2**63) -> None:
        """Let the worker do what it was told, in order, until it has run the iteration."""
        while self.told and step not in self.results:
            told = self.told.popleft()
            if isinstance(told, SchedulerOutput):
                self.results[told.step] = self.worker.execute(told)
            else:
                self.worker.move(told)

    def _note(self, update: SequenceUpdate) -> None:
        name = (update.request_id, update.index)
        tokens = self.tokens.setdefault(name, [])
        assert update.first_token == len(tokens)
        assert name not in self.reasons
        tokens.extend(update.token_ids)
        if update.finish_reason is not None:
            self.reasons[name] = update.finish_reason
