"""Measures how long iterations take on a device group's workers, with made-up sequences."""

import itertools
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from fabric.core.interpolation import Line
from fabric.core.profile import Profile
from fabric.core.sampling import SamplingParams
from fabric.engine.copy_timer import CopyLimits, measure_copies
from fabric.engine.executor import ReadyExecutor
from fabric.engine.settings import EngineSettings
from fabric.kv.transfer import WorkerOrders
from fabric.scheduler.output import NewSequence, ScheduledSequence, SchedulerOutput

Decoded = tuple[int, int, float]
Prefilled = tuple[int, float]

# The block that is copied to others.
_ZEROS = 0


@dataclass(frozen=True, slots=True)
class ProfileDepth:
    """Where to measure, and how often.

    ``prompts``, ``batches`` and ``contexts`` end at the largest that fits, which is measured too
    (``max_context`` at most). Of the chunks of long prompts, only a full measurement times more
    than the first and the last. A point is measured up to ``num_repeats`` times while that takes
    less than ``point_s``; points are left out where a table would take longer than ``table_s``.
    """

    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    max_context: int
    num_repeats: int
    point_s: float
    table_s: float
    copies: CopyLimits
    is_full: bool


QUICK = ProfileDepth(
    prompts=(1, 16, 64),
    batches=(1, 8),
    contexts=(32,),
    max_context=512,
    num_repeats=5,
    point_s=0.05,
    table_s=1.2,
    copies=CopyLimits(8 * 2**20, max_s=0.1, num_repeats=3),
    is_full=False,
)
FULL = ProfileDepth(
    prompts=(1, 4, 16, 32, 64, 128, 256, 512),
    batches=(1, 2, 4, 8, 16, 32),
    contexts=(32, 128, 512, 2048, 8192),
    max_context=2**31,
    num_repeats=7,
    point_s=1.0,
    table_s=30.0,
    copies=CopyLimits(64 * 2**20, max_s=1.0, num_repeats=7),
    is_full=True,
)


def measure_profile(
    settings: EngineSettings, executor: ReadyExecutor, model: int, depth: ProfileDepth
) -> Profile:
    """Measure one model on a device group that nobody else uses; workers forget it all afterwards.

    The model's weights are on the device, and no others. What KV blocks hold is overwritten, so
    the scheduler must not have given any out. One iteration is in flight at a time, also through
    several pipeline stages.

    KV memory that it has written to goes back to the system.

    Raises:
        GroupError: The workers can't go on.
    """
    num_blocks, block_size = executor.memory.max_num_blocks(model), settings.worker.block_size
    hosted = executor.models[model]
    timer = IterationTimer(executor, model, block_size, depth)
    if settings.worker.device != "cpu":
        timer.num_uncounted = 2
    timer.time(Load(1, 0, 1))
    room = min(hosted.card.max_model_len, num_blocks * block_size)
    chunk = min(settings.scheduler.max_num_batched_tokens, room)
    batches = up_to(depth.batches, min(settings.scheduler.max_num_seqs, (num_blocks + 1) // 2))
    longest = min(room, (num_blocks - batches[-1] + 1) * block_size, depth.max_context)
    profile = Profile(
        prefill=tuple(_measure_prefill(timer, depth, chunk, room)),
        decode=tuple(_measure_decode(timer, depth, batches, up_to(depth.contexts, longest))),
        copies=measure_copies(executor, model, num_blocks, depth.copies),
        block_bytes=hosted.space.block_bytes,
    )
    executor.move(WorkerOrders(punched=tuple(range(executor.memory.num_slabs))))
    return profile


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences that are all alike: tokens that have KV, that get it now, and are sampled."""

    num_sequences: int
    num_computed: int
    num_new: int
    num_samples: int = 1


class IterationTimer:
    """Runs iterations of made-up sequences of one model.

    KV that they read was never computed, but written: of memory that nobody has written to, systems
    give the same page of zeros everywhere, which stays in the caches. Each sequence has blocks of
    its own as far as there are any; those that it writes are its own always. ``num_uncounted``
    iterations are extra: workers meet the sequences in the first, and GPUs record the second.
    """

    num_uncounted = 1

    def __init__(
        self, executor: ReadyExecutor, model: int, block_size: int, depth: ProfileDepth
    ) -> None:
        self._executor = executor
        self._model = model
        self._num_blocks = executor.memory.max_num_blocks(model)
        self._vocab_size = executor.models[model].card.vocab_size
        self._block_size = block_size
        self._depth = depth
        self._step = 0
        self._written = {_ZEROS}
        names = {item.name for item in fields(SamplingParams)}
        defaults = executor.models[model].defaults
        shared = {item.name for item in fields(defaults)} & names
        values = {name: getattr(defaults, name) for name in shared}
        self._sampling = SamplingParams(max_tokens=1, **values)

    def time(self, load: Load) -> float:
        """Median seconds of an iteration, those aside that aren't counted.

        Raises:
            GroupError: The workers can't go on.
        """
        keys = range(load.num_sequences)
        new = tuple(self._sequence(key, load) for key in keys)
        scheduled = tuple(
            ScheduledSequence(key, load.num_computed, load.num_new, load.num_samples)
            for key in keys
        )
        self._write(new)
        first_s = self._run(scheduled, new)
        for _ in range(self.num_uncounted - 1):
            # Compiling and recording say nothing about the time of those after.
            self._run(scheduled)
            first_s = 0.0
        seconds: list[float] = []
        while len(seconds) < self._depth.num_repeats and (
            first_s + sum(seconds) < self._depth.point_s
        ):
            seconds.append(self._run(scheduled))
        # Workers apply changes even if nothing is left to compute.
        self._run((), released=tuple(keys))
        return statistics.median(seconds or [first_s])

    def _write(self, sequences: tuple[NewSequence, ...]) -> None:
        """Give blocks memory of their own if they have none yet."""
        blocks = {block for sequence in sequences for block in sequence.block_ids} - self._written
        if blocks:
            self._run((), copies=tuple((_ZEROS, block) for block in sorted(blocks)))
            self._written |= blocks

    def _run(
        self,
        scheduled: tuple[ScheduledSequence, ...],
        new: tuple[NewSequence, ...] = (),
        copies: tuple[tuple[int, int], ...] = (),
        released: tuple[int, ...] = (),
    ) -> float:
        output = SchedulerOutput(self._step, scheduled, new, copies, released, self._model)
        start_s = time.perf_counter()
        self._executor.submit(output)
        self._executor.collect()
        self._step += 1
        return time.perf_counter() - start_s

    def _sequence(self, key: int, load: Load) -> NewSequence:
        num_tokens = load.num_computed + load.num_new
        num_before = -(-num_tokens // self._block_size) - 1
        num_shared = self._num_blocks - load.num_sequences
        first = key * num_before
        before = (load.num_sequences + (first + i) % num_shared for i in range(num_before))
        token_ids = tuple((key + 31 * i) % self._vocab_size for i in range(num_tokens))
        return NewSequence(key, 0, token_ids, num_tokens, self._sampling, (*before, key))


def _measure_prefill(
    timer: IterationTimer, depth: ProfileDepth, chunk: int, room: int
) -> list[Prefilled]:
    """Times of prompts: in one chunk as measured, longer ones as the sum of their chunks."""
    table: list[Prefilled] = []
    end_s = time.perf_counter() + depth.table_s
    for num_tokens in up_to(depth.prompts, chunk):
        if len(table) > 1 and _next_s(table, num_tokens) > end_s - time.perf_counter():
            return table
        table.append((num_tokens, timer.time(Load(1, 0, num_tokens))))
    lengths = [length for length in up_to(_doubled(chunk), room) if length > chunk]
    chunks = [(0, table[-1][1])]
    for length in lengths if depth.is_full else lengths[-1:]:
        if chunks[-1][1] > end_s - time.perf_counter():
            break
        start = length - chunk
        chunks.append((start, timer.time(Load(1, start, chunk, num_samples=0))))
    # The time of a chunk grows evenly with the tokens before it.
    line = Line.through("chunks", chunks)
    for length in lengths:
        starts = range(0, length, chunk)
        parts = (line.at(start) * min(1.0, (length - start) / chunk) for start in starts)
        table.append((length, math.fsum(parts)))
    return table


def _measure_decode(
    timer: IterationTimer, depth: ProfileDepth, batches: Sequence[int], contexts: Sequence[int]
) -> list[Decoded]:
    """A full grid of as many batches, and then contexts, as there is time for."""
    end_s = time.perf_counter() + depth.table_s
    first: list[tuple[int, float]] = []
    for batch in batches:
        if len(first) > 1 and _next_s(first, batch) > end_s - time.perf_counter():
            break
        first.append((batch, timer.time(Load(batch, contexts[0] - 1, 1))))
    columns = [first]
    for context in contexts[1:]:
        if sum(seconds for _, seconds in columns[-1]) > end_s - time.perf_counter():
            break
        columns.append([(batch, timer.time(Load(batch, context - 1, 1))) for batch, _ in first])
    return sorted(
        (batch, context, seconds)
        for context, column in zip(contexts, columns, strict=False)
        for batch, seconds in column
    )


def up_to(values: Iterable[int], limit: int) -> list[int]:
    """Ascending values as long as they are below a limit, and the limit."""
    return [*itertools.takewhile(lambda value: value < limit, values), limit]


def _doubled(value: int) -> Iterator[int]:
    while True:
        yield value
        value *= 2


def _next_s(table: Sequence[tuple[int, float]], amount: int) -> float:
    """What the next amount of work takes, if time grows as fast as the work."""
    before, seconds = table[-1]
    return seconds * amount / before
