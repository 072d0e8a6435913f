"""Values on the command line; what is wrong with one is said in a sentence."""

from argparse import ArgumentTypeError
from pathlib import Path

PLOT_KINDS = (".png", ".html")


def out_path(text: str) -> Path:
    """A file to write, whose folder exists: a long search should not end in this error."""
    path = Path(text)
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    return path


def plot_path(text: str) -> Path:
    """A figure's file, of a kind that can be drawn."""
    path = out_path(text)
    if path.suffix not in PLOT_KINDS:
        raise ArgumentTypeError(f"{text}: must end in {' or '.join(PLOT_KINDS)}")
    return path


def mesh(text: str) -> tuple[int, int]:
    """Nodes, and devices of each; a number alone is devices of one node."""
    slow, times, fast = text.partition("x")
    if not times:
        slow, fast = "1", text
    if not (slow.isdecimal() and fast.isdecimal() and int(slow) and int(fast)):
        raise ArgumentTypeError(f"{text}: expected NODESxDEVICES, such as 2x4")
    return int(slow), int(fast)


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def num_bytes(text: str) -> int:
    """A size with or without a unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("GB", 10**9), ("MB", 10**6)):
        if text.endswith(unit):
            return round(positive(text.removesuffix(unit)) * size)
    return count(text)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ArgumentTypeError(f"{text}: expected names with commas between them")
    return names


def sweep_values(text: str) -> tuple[str, tuple[float, ...]]:
    """A quantity, and values that it takes."""
    name, equals, values = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"{text}: expected QUANTITY=X,...")
    return name, tuple(positive(value) for value in values.split(","))


def change(text: str) -> tuple[str, float]:
    """A quantity, and the value that it should have."""
    name, values = sweep_values(text)
    if len(values) > 1:
        raise ArgumentTypeError(f"{text}: expected one number")
    return name, values[0]


def trace(text: str) -> tuple[str, Path]:
    """A trace's format and its file."""
    name, colon, path = text.partition(":")
    if not name or not colon or not path:
        raise ArgumentTypeError(f"{text}: expected FORMAT:FILE, such as azure_llm:day.csv")
    return name, Path(path)
