import pytest
import torch

from kernels.triton.sampling import vocab_statistics
from tests.kernels.cases import random_tensor, strided_rows


@pytest.mark.parametrize("vocab_size", [1, 100, 4097, 9000])
def test_statistics_equal_those_of_torch(dtype: torch.dtype, vocab_size: int) -> None:
    logits = strided_rows(random_tensor(0, 3, vocab_size, dtype=dtype) * 20)
    found = vocab_statistics(logits)
    wide = logits.float()
    assert torch.equal(found.best, wide.amax(dim=1))
    assert torch.equal(found.index, wide.argmax(dim=1))
    torch.testing.assert_close(found.log_sum_exp, wide.logsumexp(dim=1), rtol=1e-5, atol=1e-5)


def test_the_first_of_equal_logits_is_best() -> None:
    logits = torch.zeros(2, 9000)
    logits[0, [5000, 8999, 4095]] = 3
    assert vocab_statistics(logits).index.tolist() == [4095, 0]


def test_nan_counts_as_the_largest_and_rows_of_nothing_have_no_weight() -> None:
    logits = torch.full((2, 50), -float("inf"))
    logits[0, 7], logits[0, 3] = float("nan"), 5
    found = vocab_statistics(logits)
    assert found.index.tolist() == [7, 0]
    assert found.log_sum_exp[0].isnan()
    assert found.log_sum_exp[1] == -float("inf")


def test_a_row_does_not_depend_on_other_rows(dtype: torch.dtype) -> None:
    logits = random_tensor(0, 4, 5000, dtype=dtype) * 10
    assert torch.equal(
        vocab_statistics(logits).log_sum_exp[2:3], vocab_statistics(logits[2:3]).log_sum_exp
    )
