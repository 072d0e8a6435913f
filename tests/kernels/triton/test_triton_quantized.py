import pytest
import torch

from kernels.ops import Backend, WeightFormat
from kernels.quantization import quantize
from kernels.reference import ReferenceBackend
from tests.kernels.cases import assert_near, random_tensor, strided_rows

REFERENCE = ReferenceBackend()
FORMATS = (WeightFormat.INT8, WeightFormat.INT4)


@pytest.fixture(params=FORMATS, ids=str)
def weight_format(request: pytest.FixtureRequest) -> WeightFormat:
    return request.param


@pytest.mark.parametrize(
    ("tokens", "in_features", "out_features"),
    [(1, 63, 33), (7, 65, 31), (70, 31, 100), (3, 600, 8)],
)
def test_products_equal_the_reference(
    backend: Backend,
    dtype: torch.dtype,
    weight_format: WeightFormat,
    tokens: int,
    in_features: int,
    out_features: int,
) -> None:
    x = strided_rows(random_tensor(0, tokens, in_features, dtype=dtype))
    weight = random_tensor(1, out_features, in_features, dtype=dtype) * in_features**-0.5
    shape = backend.packed_shape(out_features, in_features, dtype, weight_format)
    packed = backend.pack_linear(weight, weight_format, torch.empty(shape, dtype=torch.uint8))
    assert packed.data.shape == shape

    actual = backend.linear(x, packed)

    assert_near(actual, REFERENCE.linear(x, REFERENCE.pack_linear(weight, weight_format)))


@pytest.mark.parametrize(("out_features", "in_features"), [(33, 70), (1, 1), (64, 31)])
def test_packed_weights_are_the_specified_integers(
    backend: Backend, weight_format: WeightFormat, out_features: int, in_features: int
) -> None:
    weight = random_tensor(1, out_features, in_features)
    weight[:, ::7] *= 20
    values = backend.linear(torch.eye(in_features), backend.pack_linear(weight, weight_format)).T
    rounding = 3e-7 * weight.abs().max().item()
    expected = quantize(weight, weight_format).values()
    torch.testing.assert_close(values, expected, rtol=0, atol=rounding)


def test_row_does_not_depend_on_the_number_of_rows(
    backend: Backend, dtype: torch.dtype, weight_format: WeightFormat
) -> None:
    x = random_tensor(0, 40, 577, dtype=dtype)
    packed = backend.pack_linear(random_tensor(1, 70, 577, dtype=dtype), weight_format)
    expected = backend.linear(x, packed)
    for num_rows in (1, 16, 17):
        assert torch.equal(backend.linear(x[-num_rows:], packed), expected[-num_rows:])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_give_nan_and_others_do_not_see_them(
    backend: Backend, dtype: torch.dtype, weight_format: WeightFormat, broken: float
) -> None:
    x = random_tensor(0, 5, 300, dtype=dtype)
    packed = backend.pack_linear(random_tensor(1, 40, 300, dtype=dtype), weight_format)
    clean = backend.linear(x, packed)
    x[::2, 17] = broken
    product = backend.linear(x, packed)
    assert product[::2].isnan().all()
    assert torch.equal(product[1::2], clean[1::2])


def test_a_weight_that_is_not_finite_spoils_its_output_alone(
    backend: Backend, weight_format: WeightFormat
) -> None:
    weight = random_tensor(1, 40, 70)
    x = random_tensor(0, 3, 70)
    clean = backend.linear(x, backend.pack_linear(weight, weight_format))
    weight[7, 66] = float("inf")
    product = backend.linear(x, backend.pack_linear(weight, weight_format))
    assert product[:, 7].isnan().all()
    others = [i for i in range(40) if i != 7]
    assert torch.equal(product[:, others], clean[:, others])


@pytest.mark.parametrize(
    ("weight_format", "bits"), [(WeightFormat.INT8, 8.0), (WeightFormat.INT4, 4.5)]
)
def test_a_weight_takes_its_bits_and_what_its_scales_take(
    backend: Backend, weight_format: WeightFormat, bits: float
) -> None:
    packed = backend.pack_linear(torch.ones(64, 2048), weight_format)
    num_scales = 1 if weight_format is WeightFormat.INT8 else 2
    assert packed.data.numel() == 64 * (2048 * bits / 8 + 4 * num_scales)
