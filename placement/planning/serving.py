"""What a placement does with a trace, iteration by iteration, as a report."""

import time

import numpy as np

from fabric.core.errors import ConfigError
from fabric.core.plan import ModelShare
from fabric.core.request import Objectives
from placement.cost.model import ModelCost
from placement.groups import Placement
from placement.planning.plan_yaml import group_name
from placement.planning.report import GroupReport, ModelReport, ServingReport
from placement.planning.situation import Situation
from placement.planning.statistics import percentiles
from placement.simulator.iteration_level import (
    Detail,
    RouterModel,
    SimulatedGroup,
    SimulatedModel,
    simulate_in_detail,
)
from placement.simulator.outcome import BoolArray, Outcome
from placement.workload.trace import Trace


def serve(situation: Situation, placement: Placement, trace: Trace, seed: int = 0) -> ServingReport:
    """Simulate and report; requests of models that are nowhere count as missed.

    Raises:
        ConfigError: A group's models don't fit its memory.
    """
    start_s = time.perf_counter()
    detail = serve_in_detail(situation, placement, trace, seed)
    seconds = time.perf_counter() - start_s
    return _report(situation, placement, trace, detail, seconds)


def attained(situation: Situation, placement: Placement, trace: Trace, seed: int = 0) -> float:
    """The share of the trace's requests that meet their objectives."""
    outcome = serve_in_detail(situation, placement, trace, seed).outcome
    return float(_is_met(situation, outcome).sum()) / max(1, len(trace))


def serve_in_detail(situation: Situation, placement: Placement, trace: Trace, seed: int) -> Detail:
    """Simulate those requests whose models are placed."""
    serving, placed = situation.inputs.serving, _only_placed(trace, placement)
    router = RouterModel(
        routing=serving.routing,
        objectives=_objectives(situation, placed),
        request_s=serving.router_s,
    )
    return simulate_in_detail(simulated_groups(situation, placement), placed, router, seed)


def _objectives(situation: Situation, trace: Trace) -> tuple[Objectives, ...]:
    return tuple(situation.objectives[situation.names.index(name)] for name in trace.names)


def _is_met(situation: Situation, outcome: Outcome) -> BoolArray:
    return outcome.is_met(_objectives(situation, outcome.trace))


def simulated_groups(situation: Situation, placement: Placement) -> tuple[SimulatedGroup, ...]:
    """The placement's groups as the simulator takes them."""
    serving = situation.inputs.serving
    groups = []
    for number, group in enumerate(placement.groups):
        config = placement.configs[group.config]
        models = tuple(
            SimulatedModel(
                ModelShare(placement.models[model]),
                cost_of(situation, placement, number, model),
                situation.models[model].demands.max_model_len,
            )
            for model in group.models
        )
        groups.append(
            SimulatedGroup(
                name=group_name(number),
                parallel=config.parallel,
                models=models,
                memory_bytes=_budget_bytes(situation, placement, number),
                host_bytes=int(serving.host),
                block_size=serving.block_size,
                scheduler=serving.scheduler_config(),
            )
        )
    return tuple(groups)


def cost_of(situation: Situation, placement: Placement, group: int, model: int) -> ModelCost:
    """What a model costs on a group that hosts it."""
    config = placement.configs[placement.groups[group].config]
    cost = situation.costs.cost(placement.models[model], config)
    if cost is None:
        raise ConfigError(f"{placement.models[model]} can't be cut for {config}")
    return cost


def _budget_bytes(situation: Situation, placement: Placement, group: int) -> int:
    kind = placement.configs[placement.groups[group].config].device
    types = {one.name: one for one in situation.inventory.types}
    return int(types[kind].memory_bytes * situation.inputs.serving.memory_share)


def memory_bytes(situation: Situation, placement: Placement) -> tuple[int, ...]:
    """What each group may take of each of its devices."""
    groups = range(len(placement.groups))
    return tuple(_budget_bytes(situation, placement, group) for group in groups)


def _only_placed(trace: Trace, placement: Placement) -> Trace:
    """Requests of models that some group hosts, and only those models."""
    hosted = sorted({model for group in placement.groups for model in group.models})
    if len(hosted) == len(trace.names):
        return trace
    kept = np.isin(trace.models, hosted)
    return Trace(
        tuple(trace.names[model] for model in hosted),
        trace.duration_s,
        trace.arrivals_s[kept],
        np.searchsorted(hosted, trace.models[kept]).astype(np.int32),
        trace.prompt_tokens[kept],
        trace.output_tokens[kept],
    )


def _report(
    situation: Situation, placement: Placement, trace: Trace, detail: Detail, seconds: float
) -> ServingReport:
    met = _is_met(situation, detail.outcome)
    models = tuple(
        _model_report(situation, placement, number, trace, detail.outcome)
        for number in range(len(situation.models))
    )
    groups = tuple(
        _group_report(situation, placement, number, detail)
        for number in range(len(placement.groups))
    )
    return ServingReport(
        groups=groups,
        models=models,
        num_requests=len(trace),
        span_s=detail.span_s,
        attainment=float(met.sum()) / max(1, len(trace)),
        num_iterations=sum(figures.num_iterations for figures in detail.groups),
        seconds=seconds,
    )


def _model_report(
    situation: Situation, placement: Placement, number: int, trace: Trace, outcome: Outcome
) -> ModelReport:
    model, alone = situation.models[number], situation.unloaded[number]
    hosts = [i for i, group in enumerate(placement.groups) if number in group.models]
    names = outcome.trace.names
    place = names.index(model.name) if model.name in names else -1
    own = outcome.trace.models == place
    count = int((trace.models == number).sum())
    met = int(_is_met(situation, outcome)[own].sum())
    return ModelReport(
        model=model.name,
        rate_per_s=model.demands.rate_per_s,
        groups=tuple(group_name(i) for i in hosts),
        objectives=model.objectives,
        unloaded_ttft_s=alone.ttft_s,
        unloaded_tpot_s=alone.tpot_s,
        cost_source=situation.source(number),
        num_requests=count,
        attainment=met / count if count else 1.0,
        ttft_s=percentiles(outcome.ttft_s[own]),
        tpot_s=percentiles(outcome.tpot_s[own]),
        e2e_s=percentiles(outcome.e2e_s[own]),
    )


def _group_report(
    situation: Situation, placement: Placement, number: int, detail: Detail
) -> GroupReport:
    group = placement.groups[number]
    config = placement.configs[group.config]
    costs = [cost_of(situation, placement, number, model) for model in group.models]
    weights = [sum(stage) for stage in zip(*(cost.weight_bytes for cost in costs), strict=True)]
    budget = _budget_bytes(situation, placement, number)
    figures = detail.groups[number]
    used = budget * figures.peak_slabs // max(1, figures.num_slabs)
    return GroupReport(
        name=group_name(number),
        device=config.device,
        pipeline=config.parallel.pipeline,
        tensor=config.parallel.tensor,
        models=tuple(placement.models[model] for model in group.models),
        weight_bytes=max(weights),
        kv_bytes=max(0, used - max(weights)),
        budget_bytes=budget,
        utilisation=detail.utilisation(number),
    )
