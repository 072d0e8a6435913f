"""PyPI has other projects that import as `fabric` and `kernels`: ours must be what is imported."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).resolve().parents[2]


def imported_file(name: str, folder: Path) -> Path:
    """Import in a process outside the checkout, as a user's script does."""
    code = f"import {name}; print({name}.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip()).resolve()


@pytest.mark.parametrize("name", ["fabric", "placement", "kernels"])
def test_our_import_names_resolve_to_us(name: str, tmp_path: Path):
    ours = distribution("llm-fabric")
    installed = {Path(str(ours.locate_file(file))).resolve() for file in ours.files or ()}
    found = imported_file(name, tmp_path)
    assert found == ROOT / name / "__init__.py" or found in installed


def test_kernels_cannot_be_taken_for_the_hugging_face_package():
    assert not hasattr(kernels, "__version__")
    assert not distribution("llm-fabric").version.startswith("0.18.")
