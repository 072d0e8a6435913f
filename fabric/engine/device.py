"""The device that a worker runs on: whether it is there, and making it the current one."""

import contextlib
import platform
import re
from pathlib import Path

import torch

from fabric.core.errors import ConfigError

_NAME = re.compile(r"cpu|cuda(:\d+)?")


def open_device(name: str) -> torch.device:
    """The device of this name, ``cpu``, ``cuda`` or ``cuda:N``; plain ``cuda`` is the first.

    Raises:
        ConfigError: There is none; says what is there.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"device is {name!r}; cpu, cuda or cuda:N is needed")
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", torch.device(name).index or 0)
    if device.index >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}; {_found()}")
    return device


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a device the calling thread's while the context lasts: kernels go to the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _found() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: there is cpu alone"
    names = [
        f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
    ]
    return f"torch sees {', '.join(['cpu', *names])}" + ("" if names else ", and no GPU")


def describe_device(device: torch.device) -> str:
    """What people call it: a GPU by its name, a CPU by its type of processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def processor_name() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
