import pytest
import torch

from kernels.ops import Backend
from tests.kernels import test_decoder as decoder

test_batch_outside_the_cache_is_refused = decoder.test_batch_outside_the_cache_is_refused
test_weights_that_do_not_fit_are_refused = decoder.test_weights_that_do_not_fit_are_refused


@pytest.mark.parametrize(("heads", "has_bias"), [((4, 4, 24), False), ((6, 2, 64), True)])
def test_fused_layers_equal_single_operations(
    backend: Backend,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    has_bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Few tokens, since the interpreter is slow, and a context of two splits.
    monkeypatch.setattr(decoder, "CONTEXTS", (5, 1, 140))
    monkeypatch.setattr(decoder, "NEW", (5, 1, 2))
    monkeypatch.setattr(decoder, "NUM_LAYERS", 1)
    decoder.test_fused_layers_equal_single_operations(backend, dtype, heads, has_bias, 83)
