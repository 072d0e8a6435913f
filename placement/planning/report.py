"""What planning answers: one value for each question, that tables and JSON are made from."""

from dataclasses import dataclass

from fabric.core.request import Objectives


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and where it lies with 95 % confidence (Student's t)."""

    mean: float
    low: float
    high: float
    num_seeds: int


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; nan without any."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class ModelReport:
    """How one model would be served.

    ``rate_per_s`` is that of the whole workload, and ``groups`` host the model. Attainment is the
    share of all its requests, refused ones included, that have all ``objectives`` met;
    ``unloaded`` would be its time to the first token and for each one after it if it were alone;
    ``cost_source`` says where its times come from.
    """

    model: str
    rate_per_s: float
    groups: tuple[str, ...]
    objectives: Objectives
    unloaded_ttft_s: float
    unloaded_tpot_s: float
    cost_source: str
    num_requests: int
    attainment: float
    ttft_s: Percentiles
    tpot_s: Percentiles
    e2e_s: Percentiles


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One device group: what it is, what lies on its fullest device, and how busy it is."""

    name: str
    device: str
    pipeline: int
    tensor: int
    models: tuple[str, ...]
    weight_bytes: int
    kv_bytes: int
    budget_bytes: int
    utilisation: float

    @property
    def num_devices(self) -> int:
        """Devices that it takes."""
        return self.pipeline * self.tensor


@dataclass(frozen=True, slots=True)
class ServingReport:
    """What a placement does with a trace, by iteration-level simulation."""

    groups: tuple[GroupReport, ...]
    models: tuple[ModelReport, ...]
    num_requests: int
    span_s: float
    attainment: float
    num_iterations: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SearchReport:
    """How the placement was found: by request-level simulations of the training workload.

    ``held_out`` is the attainment of the same simulation on workloads of other seeds.
    """

    attainment: float
    held_out: Interval
    num_simulations: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Fewest:
    """The least devices, by type, with which the target is attained; none if no number is enough.

    ``held_out`` is what they attain of workloads that the search has not seen.
    """

    target: float
    counts: tuple[tuple[str, int], ...] | None
    price_per_hour: float
    held_out: float


@dataclass(frozen=True, slots=True)
class Headroom:
    """What the input's devices could take: factors on its rates and objectives, each by itself.

    Some placement still attains the target with them; None: not even with easy ones.
    """

    target: float
    rate: float | None
    objectives: float | None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The answer of ``plan``: a placement, what it is predicted to do, and what runs it.

    ``plan_yaml`` has the keys ``models`` and ``groups`` of a fabric's configuration. ``held_out``
    is attainment by iteration-level simulation of workloads of other seeds; only thorough plans
    have it.
    """

    search: SearchReport
    serving: ServingReport
    held_out: Interval | None
    target: float
    fewest: Fewest | None
    headroom: Headroom | None
    plan_yaml: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One placement policy of ``compare``: request-level attainment, training and held out."""

    policy: str
    num_groups: int
    num_replicas: int
    training: float
    held_out: Interval
    seconds: float


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """Attainment of each policy at one value of what is swept."""

    value: float
    attainment: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One panel of ``capacity``: ``quantity`` is devices, rate, cv or slo."""

    quantity: str
    points: tuple[SweepPoint, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """Why requests of a model, or on a group, miss: one constraint and how tight it is.

    ``name`` is one of unloaded latency, memory, compute, burst, convoy, none. ``share`` is the
    share of the subject's requests that miss because of it; ``why`` says it in words, with the
    numbers.
    """

    subject: str
    name: str
    share: float
    why: str


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What would change: ``change`` in words, and the attainment then and now."""

    change: str
    attainment: float
    before: float


@dataclass(frozen=True, slots=True)
class ExplainReport:
    """The answer of ``explain``."""

    bindings: tuple[Binding, ...]
    what_ifs: tuple[WhatIf, ...]
