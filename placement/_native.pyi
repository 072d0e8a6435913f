"""The C++ extension (csrc/bindings.cpp)."""

import numpy as np
import numpy.typing as npt

from placement.simulator.service import Float32Array
from placement.workload.trace import FloatArray, IntArray

MAX_STAGES: int

class Problem:
    def __init__(
        self,
        *,
        arrivals_s: FloatArray,
        kinds: IntArray,
        kind_models: IntArray,
        slo_s: Float32Array,
        num_models: int,
        stages_s: Float32Array,
        num_stages: IntArray,
        delay_s: Float32Array,
        overhead_s: float,
        num_uncounted: int,
    ) -> None: ...

def score_all(
    problem: Problem,
    groups: IntArray,
    configs: IntArray,
    offsets: IntArray,
    models: IntArray,
    num_threads: int,
) -> list[tuple[IntArray, IntArray, float]]: ...
def serve(
    problem: Problem, groups: IntArray, configs: IntArray, offsets: IntArray, models: IntArray
) -> tuple[FloatArray, IntArray]: ...

class Scorer:
    def __init__(self, problem: Problem, num_threads: int, max_remembered: int) -> None: ...
    @property
    def num_replayed(self) -> int: ...
    def score(
        self, groups: IntArray, configs: IntArray, offsets: IntArray, models: IntArray
    ) -> tuple[npt.NDArray[np.int64], FloatArray]: ...

class StageTable:
    def __init__(
        self,
        *,
        num_layers: int,
        num_devices: int,
        devices_per_node: int,
        max_stages: int,
        mesh_devices: IntArray,
        classes: IntArray,
        offsets: IntArray,
        ticks: FloatArray,
        stage_bytes: npt.NDArray[np.int64],
        inside_ticks: float,
        outside_ticks: float,
    ) -> None: ...

def pareto_pipelines(
    table: StageTable, max_bytes: int, tolerance: float
) -> list[list[tuple[int, int, int, int]]]: ...

Ways = tuple[int, int, IntArray, IntArray, npt.NDArray[np.int64], FloatArray]
ChainPlan = tuple[float, int, list[int]]

class Chain:
    def __init__(self, templates: list[Ways], order: list[int]) -> None: ...
    def min_bytes(self) -> int: ...
    def solve(self, budget: int, limit: float) -> ChainPlan: ...
    def sweep(self, budget: int, num_buckets: int) -> None: ...
    def front(self, length: int, tail: int, max_points: int) -> list[ChainPlan]: ...
