import pytest
import torch

from kernels.ops import Backend
from tests.kernels.cases import random_tensor
from tests.kernels.test_dispatch import test_operands_that_do_not_fit_are_refused_by_shape
from tests.kernels.test_layers import (
    test_linear_equals_the_reference,
    test_linear_takes_no_tokens,
    test_weight_may_be_a_slice_of_a_wider_matrix,
)
from tests.kernels.test_row_invariance import test_row_does_not_see_nan_in_another_row

__all__ = [
    "test_linear_equals_the_reference",
    "test_linear_takes_no_tokens",
    "test_operands_that_do_not_fit_are_refused_by_shape",
    "test_row_does_not_see_nan_in_another_row",
    "test_weight_may_be_a_slice_of_a_wider_matrix",
]


@pytest.mark.parametrize(("in_features", "out_features"), [(64, 70), (577, 40), (1100, 200)])
def test_row_does_not_depend_on_the_number_of_rows(
    backend: Backend, dtype: torch.dtype, in_features: int, out_features: int
) -> None:
    x = random_tensor(0, 70, in_features, dtype=dtype)
    weight = backend.pack_linear(random_tensor(1, out_features, in_features, dtype=dtype))
    expected = backend.linear(x, weight)
    for num_rows in (1, 2, 15, 16, 17, 33, 64, 65):
        assert torch.equal(backend.linear(x[-num_rows:], weight), expected[-num_rows:])


@pytest.mark.gpu
@pytest.mark.parametrize(("in_features", "out_features"), [(4096, 4096), (14336, 4096), (768, 32)])
def test_row_does_not_depend_on_the_number_of_rows_at_a_models_sizes(
    backend: Backend, dtype: torch.dtype, in_features: int, out_features: int
) -> None:
    x = random_tensor(0, 1500, in_features, dtype=dtype)
    weight = backend.pack_linear(random_tensor(1, out_features, in_features, dtype=dtype))
    expected = backend.linear(x, weight)
    for num_rows in (1, 7, 16, 17, 32, 33, 64, 65, 200, 256, 257, 1499):
        assert torch.equal(backend.linear(x[-num_rows:], weight), expected[-num_rows:])
