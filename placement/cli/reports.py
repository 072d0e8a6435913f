"""Answers of commands that put several of the planner's values together."""

from dataclasses import dataclass

from placement.planning.report import PolicyRow, Sweep


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """The answer of ``capacity``."""

    target: float
    sweeps: tuple[Sweep, ...]


@dataclass(frozen=True, slots=True)
class CompareReport:
    """The answer of ``compare``."""

    target: float
    rows: tuple[PolicyRow, ...]


@dataclass(frozen=True, slots=True)
class StageReport:
    """Layers ``first`` to ``end`` (not included) on a mesh of ``nodes`` times ``devices``."""

    first: int
    end: int
    nodes: int
    devices: int
    seconds: float
    phase_s: tuple[float, ...]
    bytes: int
    strategies: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut a model: no other is quicker, has a shorter slowest stage, and is smaller.

    ``latency_s`` is the sum of the stages' seconds, ``bottleneck_s`` that of the slowest one;
    ``bytes`` lie on the fullest device; ``phase_s`` are seconds of an iteration of each phase.
    """

    latency_s: float
    bottleneck_s: float
    bytes: int
    phase_s: tuple[float, ...]
    stages: tuple[StageReport, ...]


@dataclass(frozen=True, slots=True)
class FrontReport:
    """The answer of ``parallelize``: the front by latency, and where on it the extremes are.

    Seconds are of the ``phases`` (name, weight) together. ``budget_bytes`` of each device may be
    taken. ``choices`` are what a cut is the best of, and its number.
    """

    model: str
    device: str
    num_devices: int
    budget_bytes: int
    phases: tuple[tuple[str, float], ...]
    cuts: tuple[Cut, ...]
    choices: tuple[tuple[str, int], ...]
    solve_s: float
