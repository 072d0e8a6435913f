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
    if device != "cpu":
        return ()
    if importlib.util.find_spec("kernels.cpu._kernels") is None:
        return ("reference",)
    return ("cpp", "reference")


def select_backend(device: str, name: str | None = None, num_threads: int | None = None) -> Backend:
    """Make the backend of this name, or the device's best.

    Args:
        device: Device type; only ``cpu`` for now.
        name: One of :func:`available_backends`.
        num_threads: Threads of the ``cpp`` backend; by default, the processors that this process
            may use. ``reference`` has torch's threads.

    Raises:
        BackendUnavailable: Names the backends that the device has.
    """
    available = available_backends(device)
    chosen = name or next(iter(available), None)
    if chosen not in available:
        has = ", ".join(available) or "no backend yet"
        raise BackendUnavailable(f"kernel backend {chosen!r} for device {device!r}: it has {has}")
    if chosen == "cpp":
        return _make_cpp(num_threads or len(os.sched_getaffinity(0)))
    if name is None:
        logger.warning("kernels.cpu._kernels is not built; the slow reference backend is used")
    return ReferenceBackend()


def _make_cpp(num_threads: int) -> Backend:
    # Not imported above: the extension may be missing.
    module = importlib.import_module("kernels.cpu.backend")
    backend: Backend = module.CpuBackend(num_threads)
    return backend
