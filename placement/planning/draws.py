"""The requests that a planner's input stands for, drawn by a seed or taken from a trace."""

from placement.config.schema import PlanInput
from placement.config.workload import WorkloadSection
from placement.planning.lengths import lengths_of
from placement.planning.replays import replayed
from placement.workload.arrivals import ArrivalProcess, GammaArrivals, MmppArrivals
from placement.workload.generate import ModelWorkload, generate_trace
from placement.workload.trace import Trace


def training_trace(inputs: PlanInput) -> Trace:
    """The requests that a search sees.

    Raises:
        ConfigError: A trace can't be read, or has no requests then.
    """
    if inputs.workload.trace is not None:
        return replayed(inputs, inputs.workload.trace, inputs.workload.seed, is_training=True)
    return _drawn(inputs, inputs.workload.seed)


def held_out_traces(inputs: PlanInput) -> list[Trace]:
    """Requests that a search has not seen: of other seeds, or of the rest of a trace's time.

    Raises:
        ConfigError: As :func:`training_trace` does.
    """
    workload = inputs.workload
    seeds = range(workload.seed + 1, workload.seed + 1 + workload.num_held_out)
    if workload.trace is None:
        return [_drawn(inputs, seed) for seed in seeds]
    if workload.trace.window_s is None:
        # As they were: there is only one.
        seeds = seeds[:1]
    return [replayed(inputs, workload.trace, seed, is_training=False) for seed in seeds]


def _drawn(inputs: PlanInput, seed: int) -> Trace:
    workload = inputs.workload
    rates = inputs.rates_per_s()
    models = [
        ModelWorkload(
            section.id,
            _arrivals(workload, rate * workload.rate_scale),
            lengths_of(section.lengths or workload.lengths),
        )
        for section, rate in zip(inputs.models, rates, strict=True)
    ]
    return generate_trace(models, workload.duration_s, seed)


def _arrivals(workload: WorkloadSection, rate_per_s: float) -> ArrivalProcess:
    if workload.states is None:
        return GammaArrivals(rate_per_s, workload.gap_cv)
    return MmppArrivals(
        tuple(rate_per_s * state.factor for state in workload.states),
        tuple(state.mean_s for state in workload.states),
    )
