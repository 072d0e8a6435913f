"""The choice of a backend for a device."""

import importlib
import importlib.util
import logging
import os

from kernels.ops import Backend
from kernels.reference import ReferenceBackend

logger = logging.getLogger(__name__)


class BackendUnavailable(RuntimeError):
    """No backend of this name exists for the device, or it isn't built here."""


def available_backends(device: str) -> tuple[str, ...]:
    """Names of the backends that can run on a device type such as ``cpu``, best first."""
    if device == "cuda":
        return ("triton", "reference") if _has_triton() else ("reference",)
    if device != "cpu":
        return ()
    if importlib.util.find_spec("kernels.cpu._kernels") is None:
        return ("reference",)
    return ("cpp", "reference")


def select_backend(device: str, name: str | None = None, num_threads: int | None = None) -> Backend:
    """Make the backend of this name, or the device's best.

    Args:
        device: Device type: ``cpu`` or ``cuda``, which means the current one.
        name: One of :func:`available_backends`; on the host also ``triton``, for tests, where
            TRITON_INTERPRET=1.
        num_threads: Threads of the ``cpp`` backend; by default, the processors that this process
            may use. ``reference`` has torch's threads.

    Raises:
        BackendUnavailable: Names the backends that the device has.
    """
    available = available_backends(device)
    chosen = name or next(iter(available), None)
    if chosen not in available and not _is_interpreted(device, chosen):
        has = ", ".join(available) or "no backend yet"
        raise BackendUnavailable(f"kernel backend {chosen!r} for device {device!r}: it has {has}")
    if chosen == "cpp":
        return _make_cpp(num_threads or len(os.sched_getaffinity(0)))
    if chosen == "triton":
        return _make_triton(device)
    if name is None:
        missing = (
            "triton is not installed" if device == "cuda" else "kernels.cpu._kernels is not built"
        )
        logger.warning("%s; the slow reference backend is used", missing)
    return ReferenceBackend()


def _is_interpreted(device: str, name: str | None) -> bool:
    is_asked_for = (device, name) == ("cpu", "triton")
    return is_asked_for and os.environ.get("TRITON_INTERPRET") == "1" and _has_triton()


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _make_cpp(num_threads: int) -> Backend:
    # Not imported above: the extension may be missing.
    module = importlib.import_module("kernels.cpu.backend")
    backend: Backend = module.CpuBackend(num_threads)
    return backend


def _make_triton(device: str) -> Backend:
    # Not imported above: Triton may be missing, and reads TRITON_INTERPRET when it is imported.
    module = importlib.import_module("kernels.triton.backend")
    backend: Backend = module.TritonBackend(device)
    return backend
