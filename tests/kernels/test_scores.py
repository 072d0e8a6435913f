"""Readers of scores agree with their definition, at any vocabulary size and with any ties."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.cpu import _kernels
from kernels.cpu.scores import CpuScores
from kernels.ops import ShapeError
from kernels.scores import Draw, ScoreReader, TorchScores, search, select_scores

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SIZES = [1, 5, 16, 77, 512, 2001, 20000]
CUTS = {
    "whole": {},
    "hot": {"temperature": 7.0},
    "top-k": {"top_k": 40},
    "top-k of one": {"top_k": 1},
    "almost all": {"top_k": 1199},
    "top-p": {"top_p": 0.9},
    "tiny top-p": {"top_p": 1e-6},
    "min-p": {"min_p": 0.05},
    "min-p of one": {"min_p": 1.0},
    "all": {"temperature": 0.7, "top_k": 300, "top_p": 0.95, "min_p": 0.01},
    "sharp": {"temperature": 0.05, "top_p": 0.99},
}
NUMBERS = (0.0, 0.003, 0.25, 0.5, 0.77, 0.999, 1.0 - 2.0**-53)


@pytest.fixture(params=[*_kernels.supported_isas(), "torch"])
def reader(request: pytest.FixtureRequest) -> ScoreReader:
    return TorchScores() if request.param == "torch" else CpuScores(2, request.param)


def rough(seed: int, num_rows: int, size: int, spread: float = 3.0) -> Tensor:
    """Scores of which many are equal, as those of a bfloat16 model are."""
    drawn = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed)) * spread
    return drawn.bfloat16().float()


def fine(seed: int, num_rows: int, size: int) -> Tensor:
    return torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def kept_of(row: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """By the definition, in double: the tokens that are kept, by rank, and their masses."""
    scaled = (row / torch.tensor(draw.temperature)).double()
    order = torch.sort(scaled, descending=True, stable=True).indices.tolist()
    if draw.has_top_k(len(row)):
        order = order[: draw.top_k]
    masses = scaled[order].softmax(dim=0)
    before = masses.cumsum(dim=0) - masses
    keep = (before < draw.top_p) & (masses >= draw.min_p * masses[0])
    num_kept = max(1, int(keep.sum()))
    return torch.tensor(order[:num_kept]), masses[:num_kept]


@pytest.mark.parametrize("size", SIZES)
def test_of_equal_scores_the_first_is_the_largest(reader: ScoreReader, size: int):
    scores = rough(1, 9, size).bfloat16()
    expected = [row.tolist().index(max(row.tolist())) for row in scores]
    assert reader.argmax(scores) == expected
    assert reader.argmax(scores.float()) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [rough, fine])
def test_top_tokens_come_by_score_and_then_by_number(
    reader: ScoreReader, make: Callable[[int, int, int], Tensor], size: int
):
    scores = make(2, 5, size)
    scores[1, : size // 2] = -torch.inf
    counts = [min(count, size) for count in (0, 1, 5, 600, size)]
    order = [3, 1, 0, 2, 4]
    tops = reader.top(scores, order, counts)
    for number, count, (tokens, values) in zip(order, counts, tops, strict=True):
        expected = torch.sort(scores[number], descending=True, stable=True)
        assert torch.equal(values, expected.values[:count])
        assert torch.equal(tokens, expected.indices[:count])


def test_sums_and_counts_are_those_of_the_rows(reader: ScoreReader):
    scores = rough(3, 6, 2001) + 50
    rows = [5, 0, 5]
    torch.testing.assert_close(
        reader.log_sum_exp(scores, rows), torch.logsumexp(scores[rows].double(), dim=1).float()
    )
    bounds = [float(scores[row, 7]) for row in rows]
    expected = [int((scores[row] > bound).sum()) for row, bound in zip(rows, bounds, strict=True)]
    assert reader.num_above(scores, rows, bounds) == expected


@pytest.mark.parametrize("size", [1, 77, 1201])
@pytest.mark.parametrize("make", [rough, fine])
@pytest.mark.parametrize("changes", CUTS.values(), ids=CUTS.keys())
def test_a_draw_is_the_token_whose_share_holds_the_number(
    reader: ScoreReader,
    make: Callable[[int, int, int], Tensor],
    size: int,
    changes: dict[str, float],
):
    scores = make(4, 3, size)
    generator = torch.Generator().manual_seed(5)
    numbers = (*NUMBERS, *torch.rand(9, generator=generator, dtype=torch.float64).tolist())
    draws = [Draw(row, numbers, **changes) for row in (2, 0)]  # type: ignore[arg-type]
    for draw, drawn in zip(draws, reader.draw(scores, draws), strict=True):
        tokens, masses = kept_of(scores[draw.row], draw)
        if draw.is_whole(size):
            order = tokens.argsort()
            tokens, masses = tokens[order], masses[order]
        # Weights are rounded: a number may fall to either side of a bound that it is close to.
        for shift in (-1e-6, 1e-6):
            near = (torch.tensor(numbers, dtype=torch.float64) + shift).clamp(0.0, 1.0 - 2.0**-53)
            expected = tokens[search(masses, near)].tolist()
            same = [a == b for a, b in zip(drawn, expected, strict=True)]
            assert sum(same) >= len(numbers) - 3
        assert set(drawn) <= set(tokens.tolist())


def test_readers_draw_the_same_tokens():
    scores = fine(6, 64, 2001)
    generator = torch.Generator().manual_seed(7)
    for changes in CUTS.values():
        numbers = torch.rand(64, 2, generator=generator, dtype=torch.float64).tolist()
        draws = [
            Draw(row, tuple(own), **changes)  # type: ignore[arg-type]
            for row, own in enumerate(numbers)
        ]
        expected = TorchScores().draw(scores, draws)
        for isa in _kernels.supported_isas():
            drawn = CpuScores(2, isa).draw(scores, draws)
            assert sum(a != b for a, b in zip(drawn, expected, strict=True)) == 0, changes


def test_a_rows_draw_does_not_depend_on_the_others(reader: ScoreReader):
    scores = rough(8, 40, 5000)
    changes = [*CUTS.values()] * 4
    draws = [
        Draw(row, (0.1 + row / 50,), **changes[row])  # type: ignore[arg-type]
        for row in range(40)
    ]
    together = reader.draw(scores, draws)
    for draw, tokens in zip(draws, together, strict=True):
        assert reader.draw(scores, [draw]) == [tokens]


def test_tokens_that_are_masked_are_never_drawn(reader: ScoreReader):
    scores = torch.full((1, 1000), -torch.inf)
    scores[0, [3, 500, 999]] = torch.tensor([1.0, 1.0, 0.5])
    for changes in ({}, {"top_p": 0.99}, {"top_k": 7}, {"min_p": 0.1}):
        (drawn,) = reader.draw(scores, [Draw(0, NUMBERS, **changes)])  # type: ignore[arg-type]
        assert set(drawn) == {3, 500, 999}


def test_rows_without_a_number_give_tokens_all_the_same():
    scores = torch.full((2, 100), torch.nan)
    scores[1] = -torch.inf
    reader = CpuScores(1)
    assert all(0 <= token < 100 for token in reader.argmax(scores))
    for changes in CUTS.values():
        draws = [Draw(row, NUMBERS, **changes) for row in (0, 1)]  # type: ignore[arg-type]
        assert all(0 <= token < 100 for drawn in reader.draw(scores, draws) for token in drawn)
    for tokens, _ in reader.top(scores, [0, 1], [50, 100]):
        assert bool(((tokens >= 0) & (tokens < 100)).all())


def test_what_lies_outside_the_scores_is_refused():
    scores, reader = fine(9, 2, 50), CpuScores(1)
    with pytest.raises(IndexError, match="row 2 is outside 0 to 1"):
        reader.draw(scores, [Draw(2, (0.5,))])
    with pytest.raises(IndexError, match="count 51 is outside 0 to 50"):
        reader.top(scores, [0], [51])
    with pytest.raises(ShapeError, match="float32 is needed"):
        reader.log_sum_exp(scores.bfloat16(), [0])


def test_the_host_has_the_extension_and_other_devices_torch():
    assert isinstance(select_scores("cpu", None, 1), CpuScores)
    assert isinstance(select_scores("cpu", "reference", 1), TorchScores)
    assert isinstance(select_scores("cuda", None, 1), TorchScores)
