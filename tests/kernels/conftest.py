from collections.abc import Iterator

import pytest
import torch

from kernels.dispatch import available_backends
from kernels.ops import Backend
from tests.kernels.cases import DTYPES

if "cpp" in available_backends("cpu"):
    from kernels.cpu._kernels import emulated_isas, supported_isas
    from kernels.cpu.backend import CpuBackend

    CPU_ISAS = supported_isas() + emulated_isas()
else:
    CPU_ISAS = []


@pytest.fixture(params=CPU_ISAS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """The C++ backend with two threads, for each instruction set of this processor."""
    return CpuBackend(num_threads=2, isa=request.param)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
