"""The extension for rows of scores (csrc/score_bindings.cpp). Strides are in elements."""

from collections.abc import Sequence

class Scores:
    def __init__(self, isa: str, num_threads: int) -> None: ...
    def argmax(self, bf16: bool, data: int, rows: int, columns: int, stride: int) -> list[int]: ...
    def top(
        self,
        data: int,
        rows: int,
        columns: int,
        stride: int,
        chosen: Sequence[int],
        counts: Sequence[int],
        ids: int,
        scores: int,
    ) -> None: ...
    def log_sum_exp(
        self, data: int, rows: int, columns: int, stride: int, chosen: Sequence[int]
    ) -> list[float]: ...
    def num_above(
        self,
        data: int,
        rows: int,
        columns: int,
        stride: int,
        chosen: Sequence[int],
        bounds: Sequence[float],
    ) -> list[int]: ...
    def draw(
        self,
        data: int,
        rows: int,
        columns: int,
        stride: int,
        draws: Sequence[tuple[int, float, int, float, float, Sequence[float]]],
    ) -> list[list[int]]: ...
