"""Files stay small enough to be read in one sitting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("fabric", "placement", "kernels", "protos", "tests")
PYTHON_MAX_LINES = 400
PYTHON_WARN_LINES = 300
NATIVE_MAX_LINES = 500
NATIVE_SUFFIXES = frozenset({".h", ".hpp", ".cuh", ".cc", ".cpp", ".cu"})


def source_files() -> Iterator[Path]:
    for folder in SOURCE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            is_source = path.suffix == ".py" or path.suffix in NATIVE_SUFFIXES
            is_generated = "_pb2" in path.name
            if is_source and not is_generated:
                yield path


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def lines_over(limit: int, *, native: bool) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} has {num_lines(path)} lines; at most {limit}"
        for path in source_files()
        if (path.suffix in NATIVE_SUFFIXES) == native and num_lines(path) > limit
    ]


def test_no_python_file_is_too_long():
    assert lines_over(PYTHON_MAX_LINES, native=False) == []


def test_no_native_source_is_too_long():
    assert lines_over(NATIVE_MAX_LINES, native=True) == []


def test_long_python_files_are_reported(capsys: pytest.CaptureFixture[str]):
    for line in lines_over(PYTHON_WARN_LINES, native=False):
        with capsys.disabled():
            print(f"\nwarning: {line}, unless there is a good reason")  # noqa: T201
