import logging

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import BackendUnavailable, available_backends, select_backend
from kernels.ops import Backend, ShapeError
from kernels.reference import ReferenceBackend
from tests.kernels.cases import random_tensor


def test_reference_is_available_and_is_chosen_by_name() -> None:
    assert available_backends("cpu")[-1] == "reference"
    assert isinstance(select_backend("cpu", "reference"), ReferenceBackend)


def test_reference_with_a_warning_where_the_extension_is_not_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert isinstance(select_backend("cpu"), ReferenceBackend)
    assert "not built" in caplog.text


@pytest.mark.parametrize(("device", "name"), [("xpu", None), ("cpu", "triton"), ("cuda", "cpp")])
def test_backend_that_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, name: str | None
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match=f"'{device}'"):
        select_backend(device, name)


def test_triton_on_the_host_is_chosen_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    backend_module = pytest.importorskip("kernels.triton.backend")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "triton" not in available_backends("cpu")
    assert isinstance(select_backend("cpu", "triton"), backend_module.TritonBackend)


def test_reference_with_a_warning_on_a_gpu_without_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert available_backends("cuda") == ("reference",)
    with caplog.at_level(logging.WARNING):
        assert isinstance(select_backend("cuda"), ReferenceBackend)
    assert "triton is not installed" in caplog.text


def test_extension_is_chosen_where_it_is_built() -> None:
    backend_module = pytest.importorskip("kernels.cpu.backend")
    assert isinstance(select_backend("cpu", num_threads=1), backend_module.CpuBackend)


def test_unknown_isa_is_refused_with_the_known_ones() -> None:
    backend_module = pytest.importorskip("kernels.cpu.backend")
    with pytest.raises(ValueError, match=r"'sse9'.*portable"):
        backend_module.CpuBackend(1, isa="sse9")


def test_operands_that_do_not_fit_are_refused_by_shape(backend: Backend) -> None:
    x = random_tensor(0, 3, 8)
    weight = backend.pack_linear(random_tensor(1, 5, 9))
    with pytest.raises(ShapeError, match=r"\[3, 8\].*float32\[\*, 9\]"):
        backend.linear(x, weight)
    with pytest.raises(ShapeError, match=r"norm weight .*\[7\].*\[8\]"):
        backend.rms_norm(x, torch.ones(7), 1e-5)
    with pytest.raises(ShapeError, match="float64"):
        backend.silu_and_mul(x.double())
    with pytest.raises(ShapeError, match="contiguous rows"):
        backend.silu_and_mul(x.T)
    with pytest.raises(ShapeError, match=r"query .*\[3, 8\]"):
        backend.rope(x, x, torch.zeros(3, dtype=torch.int32), torch.ones(4, 8))
