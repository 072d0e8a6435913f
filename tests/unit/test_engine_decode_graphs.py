"""Recorded iterations: which are recorded, what fills them up, and when they are forgotten."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fabric.core.errors import SourceError
from fabric.engine.decode_graphs import MAX_SEQS, Bucket, DecodeGraphs, Replay
from fabric.engine.step_inputs import HostInputs, Step
from kernels.ops import RaggedBatch

PADDING, BLOCK_SIZE = 1000, 4


@dataclass
class FakeRecorder:
    """Carries out what it recorded, into the tensor that the recording returned."""

    num_records: int = 0
    num_replays: int = 0
    num_clears: int = 0
    error: RuntimeError | None = None

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        if self.error is not None:
            raise self.error
        self.num_records += 1
        output = torch.full_like(run(), torch.nan)

        def replay() -> None:
            self.num_replays += 1
            output.copy_(run())

        return replay, output

    def clear(self) -> None:
        self.num_clears += 1


@dataclass
class FakeModel:
    """Each row's logits tell all that it was computed from."""

    seen: list[Step] = field(default_factory=list)
    addresses: set[int] = field(default_factory=set)
    error: Exception | None = None

    def run(self, step: Step) -> Tensor:
        if self.error is not None:
            raise self.error
        self.seen.append(step)
        self.addresses.add(step.token_ids.data_ptr())
        batch = step.batch
        parts = (step.token_ids, batch.positions, batch.slots, batch.context_lens)
        return torch.stack([part.float() for part in parts], dim=1)[step.rows]


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


@pytest.fixture
def graphs(model: FakeModel, recorder: FakeRecorder) -> DecodeGraphs:
    return DecodeGraphs(model.run, HostInputs(), recorder, PADDING, BLOCK_SIZE)


def decode(num_seqs: int, num_blocks: int = 3, first: int = 1) -> Step:
    numbers = torch.arange(first, first + num_seqs)
    batch = RaggedBatch(
        positions=numbers.int() + 7,
        slots=numbers * BLOCK_SIZE,
        query_start=torch.arange(num_seqs + 1, dtype=torch.int32),
        context_lens=numbers.int() + 8,
        block_tables=torch.full((num_seqs, num_blocks), first, dtype=torch.int32),
    )
    return Step(numbers, batch, torch.arange(num_seqs))


def expected(step: Step) -> Tensor:
    return FakeModel().run(step)


@pytest.mark.parametrize(
    ("num_seqs", "num_blocks", "bucket"),
    [
        (1, 1, (1, 16)),
        (2, 16, (2, 16)),
        (3, 17, (4, 32)),
        (5, 64, (8, 64)),
        (9, 65, (16, 128)),
        (24, 128, (24, 128)),
        (25, 1, (32, 16)),
        (MAX_SEQS, 1, (MAX_SEQS, 16)),
    ],
)
def test_a_bucket_is_the_smallest_that_holds_an_iteration(
    num_seqs: int, num_blocks: int, bucket: tuple[int, int]
) -> None:
    assert Bucket.of(num_seqs, num_blocks) == Bucket(*bucket)


def test_every_replay_computes_from_what_it_was_given(
    graphs: DecodeGraphs, recorder: FakeRecorder
) -> None:
    for first, num_seqs in enumerate((3, 4, 3, 3, 4), start=1):
        step = decode(num_seqs, first=first)
        logits = graphs.run(step)
        assert logits is not None
        assert torch.equal(logits, expected(step))
    assert (recorder.num_records, recorder.num_replays) == (1, 4)


def test_the_first_iteration_of_a_bucket_runs_as_it_is(
    graphs: DecodeGraphs, recorder: FakeRecorder
) -> None:
    graphs.run(decode(3))
    graphs.run(decode(3, num_blocks=20))
    assert (recorder.num_records, graphs.num_recorded) == (0, 0)
    graphs.run(decode(3))
    assert (recorder.num_records, graphs.num_recorded) == (1, 1)


def test_a_bucket_reads_the_same_memory_in_every_iteration(
    graphs: DecodeGraphs, model: FakeModel
) -> None:
    for first in range(1, 5):
        graphs.run(decode(3, first=first))
    assert len(model.addresses) == 1


def test_padding_is_sequences_of_one_token_in_the_block_that_nobody_has(
    graphs: DecodeGraphs, model: FakeModel
) -> None:
    graphs.run(decode(5))
    batch = model.seen[0].batch
    assert batch.query_start.tolist() == list(range(9))
    assert batch.positions[5:].tolist() == [0, 0, 0]
    assert batch.context_lens[5:].tolist() == [1, 1, 1]
    assert batch.slots[5:].tolist() == [PADDING * BLOCK_SIZE] * 3
    assert batch.block_tables[5:, 0].tolist() == [PADDING] * 3
    assert batch.block_tables[:5, :3].tolist() == [[1, 1, 1]] * 5
    assert not batch.block_tables[:, 3:].any()
    assert model.seen[0].token_ids[5:].tolist() == [0, 0, 0]


def test_prompts_and_large_batches_are_not_recorded(graphs: DecodeGraphs) -> None:
    step = decode(2)
    prompt = Step(torch.arange(3), step.batch, step.rows)
    assert graphs.run(prompt) is None
    assert graphs.run(decode(MAX_SEQS + 1)) is None


def test_an_iteration_that_fails_is_not_the_first_of_its_bucket(
    graphs: DecodeGraphs, model: FakeModel, recorder: FakeRecorder
) -> None:
    model.error = SourceError("weights did not come")
    with pytest.raises(SourceError):
        graphs.run(decode(2))
    model.error = None
    graphs.run(decode(2))
    assert recorder.num_records == 0


def test_after_weights_have_gone_everything_is_recorded_anew(
    graphs: DecodeGraphs, recorder: FakeRecorder
) -> None:
    for _ in range(3):
        graphs.run(decode(2))
    graphs.clear()
    assert (graphs.num_recorded, recorder.num_clears) == (0, 1)
    for _ in range(2):
        graphs.run(decode(2))
    assert recorder.num_records == 2


def test_what_cannot_be_recorded_runs_as_it_is_from_then_on(
    graphs: DecodeGraphs, recorder: FakeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.error = RuntimeError("operation not permitted when stream is capturing")
    for first in range(1, 5):
        step = decode(3, first=first)
        logits = graphs.run(step)
        assert logits is None or torch.equal(logits, expected(step))
    assert graphs.run(decode(3)) is None
    assert len(caplog.records) == 1
    assert "not permitted" in caplog.text
