"""Fixtures for tests that need real weights or traces; without these they are skipped."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
