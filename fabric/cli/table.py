"""Plain text tables."""

import shutil
import sys
from collections.abc import Iterator, Sequence

_GAP = "  "


def format_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    num_keys: int = 1,
) -> str:
    """Lines with aligned columns; columns whose cells are all numbers are set to the right.

    A table that is wider than ``width`` characters is cut into several, one below the other; each
    begins with the first ``num_keys`` columns.
    """
    columns = [_aligned(column) for column in zip(header, *rows, strict=True)]
    blocks = _cut(columns[:num_keys], columns[num_keys:], width)
    return "\n\n".join(
        "\n".join(_GAP.join(line).rstrip() for line in zip(*block, strict=True)) for block in blocks
    )


def terminal_width() -> int | None:
    """Characters of a line of the terminal that standard output is; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    is_right = len(column) > 1 and all(map(_is_number, column[1:]))
    return [cell.rjust(width) if is_right else cell.ljust(width) for cell in column]


def _cut(
    keys: list[list[str]], columns: list[list[str]], width: int | None
) -> Iterator[list[list[str]]]:
    block = list(keys)
    for column in columns:
        cells = [each[0] for each in (*block, column)]
        if width is not None and len(_GAP.join(cells)) > width and len(block) > len(keys):
            yield block
            block = list(keys)
        block.append(column)
    yield block


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").replace(".", "").isdigit()
