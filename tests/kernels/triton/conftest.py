"""On a GPU these tests run there; elsewhere on the host, under Triton's interpreter."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from kernels.ops import Backend

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Triton reads it when it is imported. Where other tests are collected first, which may import
    # it, tests/conftest.py has set it before.
    os.environ["TRITON_INTERPRET"] = "1"

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if HAS_GPU else torch.device("cpu")


@pytest.fixture
def backend(device: torch.device) -> Backend:
    # Not imported above: Triton may be missing.
    from kernels.triton.backend import TritonBackend

    return TritonBackend(device, checks_contents=True)


@pytest.fixture(autouse=True)
def _operands_are_there(device: torch.device) -> Iterator[None]:
    torch.set_default_device(device)
    yield
    torch.set_default_device("cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        # numpy, which the interpreter computes with, warns of infinities and NaN.
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU is here"))
