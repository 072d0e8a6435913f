import pytest
import torch

from kernels.ops import Backend
from kernels.reference import ReferenceBackend
from tests.kernels.cases import assert_near, random_tensor, strided_rows

REFERENCE = ReferenceBackend()


@pytest.mark.parametrize(
    ("tokens", "in_features", "out_features"),
    [(1, 64, 64), (1, 63, 33), (2, 576, 1), (7, 65, 31), (13, 576, 192), (70, 31, 100), (24, 1, 8)],
)
def test_linear_equals_the_reference(
    backend: Backend, dtype: torch.dtype, tokens: int, in_features: int, out_features: int
) -> None:
    x = strided_rows(random_tensor(0, tokens, in_features, dtype=dtype))
    weight = random_tensor(1, out_features, in_features, dtype=dtype) * in_features**-0.5

    actual = backend.linear(x, backend.pack_linear(weight))

    assert_near(actual, REFERENCE.linear(x, REFERENCE.pack_linear(weight)))


def test_linear_takes_no_tokens(backend: Backend, dtype: torch.dtype) -> None:
    weight = backend.pack_linear(random_tensor(1, 5, 8, dtype=dtype))
    assert backend.linear(torch.empty((0, 8), dtype=dtype), weight).shape == (0, 5)


def test_weight_may_be_a_slice_of_a_wider_matrix(backend: Backend, dtype: torch.dtype) -> None:
    weight = strided_rows(random_tensor(1, 20, 48, dtype=dtype))
    x = random_tensor(0, 3, 48, dtype=dtype)

    actual = backend.linear(x, backend.pack_linear(weight))

    assert_near(actual, REFERENCE.linear(x, REFERENCE.pack_linear(weight)))


@pytest.mark.parametrize(("tokens", "size"), [(1, 64), (3, 576), (70, 577), (5, 7)])
def test_norms_equal_the_reference(
    backend: Backend, dtype: torch.dtype, tokens: int, size: int
) -> None:
    x = strided_rows(random_tensor(0, tokens, size, dtype=dtype))
    weight = random_tensor(1, size, dtype=dtype)
    residual = random_tensor(2, tokens, size, dtype=dtype)
    expected_residual = residual.clone()

    assert_near(backend.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    assert_near(
        backend.add_rms_norm(x, residual, weight, 1e-5),
        REFERENCE.add_rms_norm(x, expected_residual, weight, 1e-5),
    )
    assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 64), (9, 8), (33, 80), (2, 96), (3, 256)])
def test_rope_equals_the_reference(
    backend: Backend, dtype: torch.dtype, tokens: int, head_dim: int
) -> None:
    query = strided_rows(random_tensor(0, tokens, 9, head_dim, dtype=dtype))
    key = strided_rows(random_tensor(1, tokens, 3, head_dim, dtype=dtype))
    expected_query, expected_key = query.clone(), key.clone()
    positions = torch.arange(tokens, dtype=torch.int32) * 3 % 50
    angles = random_tensor(2, 50, head_dim // 2) * 10
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)

    backend.rope(query, key, positions, cos_sin)

    REFERENCE.rope(expected_query, expected_key, positions, cos_sin)
    assert_near(query, expected_query)
    assert_near(key, expected_key)


@pytest.mark.parametrize(("tokens", "size"), [(1, 64), (3, 1536), (70, 33), (2, 5)])
def test_silu_and_mul_equals_the_reference(
    backend: Backend, dtype: torch.dtype, tokens: int, size: int
) -> None:
    gate_up = random_tensor(0, tokens, 2 * size, dtype=dtype) * 30
    assert_near(backend.silu_and_mul(gate_up), REFERENCE.silu_and_mul(gate_up))


def test_silu_keeps_nan_and_infinity(backend: Backend) -> None:
    gate = torch.tensor([-float("inf"), -100.0, -1e-30, 0.0, 200.0, float("inf"), float("nan")])
    gate_up = torch.cat((gate, torch.ones(7)))[None]

    actual = backend.silu_and_mul(gate_up)[0]

    assert actual[1:4].tolist() == pytest.approx([0.0, -5e-31, 0.0])
    assert actual[4:6].tolist() == [200.0, float("inf")]
    assert actual[6].isnan()
