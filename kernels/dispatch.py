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
    """Names of the backends that can run on a device type such as ``cpu``, best first.

    ``triton`` runs on the host where TRITON_INTERPRET=1, for tests.
    """
    if device == "cuda":
        return ("triton", "reference") if _has_triton() else ("reference",)
    if device != "cpu":
        return ()
    is_built = importlib.util.find_spec("kernels.cpu._kernels") is not None
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1" and _has_triton()
    names = {"cpp": is_built, "triton": is_interpreted, "reference": True}
    return tuple(name for name, is_available in names.items() if is_available)


def select_backend(device: str, name: str | None = None, num_threads: int | None = None) -> Backend:
    """Make the backend of this name, or the device's best.

    Args:
        device: Device type: ``cpu`` or ``cuda``, which means the current one.
        name: One of :func:`available_backends`.
        num_threads: Threads of the ``cpp`` backend; by default, the processors that this process
            may use. ``reference`` has torch's threads.

    Raises:
        BackendUnavailable: Names the backends that the device has.
    """
    available = available_backends(device)
    chosen = name or _default(device, available)
    if chosen not in available:
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


def _default(device: str, available: tuple[str, ...]) -> str | None:
    # An interpreter is nobody's best.
    fitting = [name for name in available if (device, name) != ("cpu", "triton")]
    return next(iter(fitting), None)


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
