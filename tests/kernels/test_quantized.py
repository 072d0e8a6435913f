"""Integer weights: their values, and products that are the same to the last bit everywhere."""

import pytest
import torch
from torch import Tensor

from kernels.dispatch import available_backends
from kernels.ops import Backend, PackedLinear, ShapeError, WeightFormat
from kernels.quantization import GROUP, quantize
from kernels.reference import ReferenceBackend
from tests.kernels.cases import random_tensor, strided_rows
from tests.kernels.conftest import CPU_ISAS

if "cpp" in available_backends("cpu"):
    from kernels.cpu.backend import CpuBackend

FORMATS = (WeightFormat.INT8, WeightFormat.INT4)
REFERENCE = ReferenceBackend()
# Rows of x are rounded to 16 bits, which random signs mostly even out; bfloat16 rounds the result.
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 2**-7}
SIZES = [(1, 64, 64), (1, 63, 33), (2, 576, 1), (7, 65, 31), (13, 576, 192), (70, 31, 100)]
SIZES += [(24, 1, 8), (5, 1000, 70), (4, 172, 130)]


@pytest.fixture(params=FORMATS, ids=str)
def weight_format(request: pytest.FixtureRequest) -> WeightFormat:
    return request.param


def identity_product(backend: Backend, weight: PackedLinear) -> Tensor:
    """The packed weight's values, which rows with a single one pick out."""
    return backend.linear(torch.eye(weight.in_features), weight).T


def poisoned(backend: Backend, x: Tensor, weight: PackedLinear, monkeypatch) -> Tensor:
    """The product, written over NaN."""
    with monkeypatch.context() as patch:
        empty = torch.empty
        patch.setattr(
            torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(float("nan"))
        )
        return backend.linear(x, weight)


@pytest.mark.parametrize(("tokens", "in_features", "out_features"), SIZES)
def test_products_equal_the_reference(
    backend: Backend,
    dtype: torch.dtype,
    weight_format: WeightFormat,
    tokens: int,
    in_features: int,
    out_features: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = strided_rows(random_tensor(0, tokens, in_features, dtype=dtype))
    weight = random_tensor(1, out_features, in_features, dtype=dtype) * in_features**-0.5

    actual = poisoned(backend, x, backend.pack_linear(weight, weight_format), monkeypatch)

    expected = REFERENCE.linear(x, REFERENCE.pack_linear(weight, weight_format))
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("out_features", "in_features"), [(33, 70), (1, 1), (100, 192), (64, 31)])
@pytest.mark.parametrize("kind", ["random", "outliers", "one sign", "coarse"])
def test_packed_weights_are_the_specified_integers(
    backend: Backend, weight_format: WeightFormat, out_features: int, in_features: int, kind: str
) -> None:
    weight = random_tensor(1, out_features, in_features)
    if kind == "outliers":
        weight[:, ::7] *= 20
    elif kind == "one sign":
        weight = weight.abs() + 3
    elif kind == "coarse":
        weight = torch.round(weight * 2) * 0.25
    packed = backend.pack_linear(weight, weight_format)

    actual = identity_product(backend, packed)

    rounding = 3e-7 * weight.abs().max().item()
    torch.testing.assert_close(
        actual, quantize(weight, weight_format).values(), rtol=0, atol=rounding
    )


def test_every_isa_packs_and_multiplies_alike_to_the_last_bit(
    dtype: torch.dtype, weight_format: WeightFormat
) -> None:
    if len(CPU_ISAS) < 2:
        pytest.skip("this processor runs one instruction set")
    weight = random_tensor(1, 150, 333, dtype=dtype)
    x = random_tensor(0, 33, 333, dtype=dtype)
    backends = [CpuBackend(num_threads=2, isa=isa) for isa in CPU_ISAS]
    packed = [backend.pack_linear(weight, weight_format) for backend in backends]
    products = [backend.linear(x, weight) for backend, weight in zip(backends, packed, strict=True)]
    for other, product in zip(packed[1:], products[1:], strict=True):
        assert torch.equal(other.data, packed[0].data)
        assert torch.equal(product, products[0])


@pytest.mark.parametrize(("in_features", "out_features"), [(64, 70), (577, 40)])
def test_row_does_not_depend_on_the_number_of_rows(
    backend: Backend,
    dtype: torch.dtype,
    weight_format: WeightFormat,
    in_features: int,
    out_features: int,
) -> None:
    x = random_tensor(0, 40, in_features, dtype=dtype)
    weight = backend.pack_linear(
        random_tensor(1, out_features, in_features, dtype=dtype), weight_format
    )
    alone = torch.cat([backend.linear(x[i : i + 1], weight) for i in range(40)])
    for num_rows in range(1, 41):
        assert torch.equal(backend.linear(x[-num_rows:], weight), alone[-num_rows:])


def test_threads_do_not_matter(dtype: torch.dtype, weight_format: WeightFormat) -> None:
    if not CPU_ISAS:
        pytest.skip("the extension is not built")
    x = random_tensor(0, 20, 640, dtype=dtype)
    weight = random_tensor(1, 500, 640, dtype=dtype)
    one, three = (CpuBackend(num_threads=number) for number in (1, 3))
    packed = one.pack_linear(weight, weight_format)
    assert torch.equal(packed.data, three.pack_linear(weight, weight_format).data)
    assert torch.equal(one.linear(x, packed), three.linear(x, packed))


def test_sums_of_the_deepest_weight_do_not_overflow(
    backend: Backend, weight_format: WeightFormat
) -> None:
    depth = 65536
    weight = backend.pack_linear(torch.ones(2, depth), weight_format)
    [row] = backend.linear(torch.full((1, depth), 3.0), weight)
    assert row.tolist() == pytest.approx([3.0 * depth] * 2, rel=1e-4)
    [row] = backend.linear(torch.full((1, depth), -3.0), weight)
    assert row.tolist() == pytest.approx([-3.0 * depth] * 2, rel=1e-4)


def test_deeper_weights_are_refused(backend: Backend, weight_format: WeightFormat) -> None:
    with pytest.raises(ShapeError, match="65537"):
        backend.pack_linear(torch.ones(1, 65537), weight_format)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_give_nan_and_others_do_not_see_them(
    backend: Backend, dtype: torch.dtype, weight_format: WeightFormat, broken: float
) -> None:
    x = random_tensor(0, 15, 48, dtype=dtype)
    weight = backend.pack_linear(random_tensor(1, 40, 48, dtype=dtype), weight_format)
    clean = backend.linear(x, weight)
    x[::2, 17] = broken
    product = backend.linear(x, weight)
    assert product[::2].isnan().all()
    assert torch.equal(product[1::2], clean[1::2])


def test_rows_of_zeros_and_of_almost_nothing_give_zeros(
    backend: Backend, weight_format: WeightFormat
) -> None:
    weight = backend.pack_linear(random_tensor(1, 40, 48), weight_format)
    x = torch.zeros(2, 48)
    x[1] = 1e-38
    assert torch.equal(backend.linear(x, weight), torch.zeros(2, 40))


def test_largest_magnitudes_survive(backend: Backend, weight_format: WeightFormat) -> None:
    weight = backend.pack_linear(torch.eye(48), weight_format)
    x = torch.zeros(1, 48)
    x[0, 3], x[0, 5] = 3e38, 1e38
    [row] = backend.linear(x, weight)
    assert row[3].item() == pytest.approx(3e38, rel=0.02)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_spoils_its_output_alone(
    backend: Backend, weight_format: WeightFormat, broken: float
) -> None:
    weight = random_tensor(1, 40, 70)
    x = random_tensor(0, 3, 70)
    clean = backend.linear(x, backend.pack_linear(weight, weight_format))
    weight[7, 66] = broken
    product = backend.linear(x, backend.pack_linear(weight, weight_format))
    assert product[:, 7].isnan().all()
    others = [i for i in range(40) if i != 7]
    assert torch.equal(product[:, others], clean[:, others])


def test_weights_of_zeros_stay_zeros(backend: Backend, weight_format: WeightFormat) -> None:
    weight = torch.zeros(5, 64)
    assert torch.equal(
        identity_product(backend, backend.pack_linear(weight, weight_format)), weight
    )


def test_no_tokens_give_no_rows(backend: Backend, weight_format: WeightFormat) -> None:
    weight = backend.pack_linear(torch.ones(5, 8), weight_format)
    assert backend.linear(torch.empty((0, 8)), weight).shape == (0, 5)


@pytest.mark.parametrize(
    ("weight_format", "bits"), [(WeightFormat.INT8, 8.0), (WeightFormat.INT4, 4.5)]
)
def test_a_weight_takes_its_bits_and_what_its_scales_take(
    backend: Backend, weight_format: WeightFormat, bits: float
) -> None:
    packed = backend.pack_linear(torch.ones(64, 2048), weight_format)
    num_scales = 1 if weight_format is WeightFormat.INT8 else 2
    assert packed.data.numel() == 64 * (2048 * bits / 8 + 4 * num_scales)


def test_a_groups_fit_leaves_less_error_than_its_range(weight_format: WeightFormat) -> None:
    weight = random_tensor(1, 64, 512)
    error = (quantize(weight, weight_format).values() - weight).square().mean().sqrt()
    assert error < {WeightFormat.INT8: 0.0095, WeightFormat.INT4: 0.0725}[weight_format]


def test_int4_keeps_weights_that_are_on_a_grid_of_their_group() -> None:
    steps = torch.randint(0, 16, (6, 4, GROUP), generator=torch.Generator().manual_seed(0))
    steps[..., 0], steps[..., 1] = 0, 15
    weight = (steps * 0.01 - 0.07).view(6, -1)
    values = quantize(weight, WeightFormat.INT4).values()
    torch.testing.assert_close(values, weight, rtol=0, atol=5e-4)
