"""Makes what costs say of models into what the request-level simulator takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fabric.core.request import Objectives
from placement.cost.model import CostModel, ModelCost
from placement.devices import GroupConfig
from placement.planning.operating import (
    Demands,
    OperatingPoint,
    Service,
    kv_bytes,
    operating_point,
)
from placement.simulator.service import KindRequests, ServiceTimes
from placement.workload.kinds import RequestKinds


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to place: what its requests are like, and how fast they should be served."""

    name: str
    demands: Demands
    objectives: Objectives


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What a device of a configuration has for weights and KV, and how many sequences may run."""

    budget_bytes: int
    max_num_seqs: int


def kind_requests(models: Sequence[PlannedModel], kinds: RequestKinds) -> KindRequests:
    """A trace's requests by kind; :func:`service_times` tells what their one objective means."""
    slo_s = np.array([_slo_s(models[model].objectives) for model in kinds.models], np.float32)
    return KindRequests(kinds.trace.arrivals_s, kinds.kinds, kinds.models, slo_s, len(models))


def service_times(
    costs: CostModel,
    configs: Sequence[GroupConfig],
    models: Sequence[PlannedModel],
    kinds: RequestKinds,
    limits: Sequence[GroupLimits],
) -> ServiceTimes:
    """How long kinds of requests keep the stages of each configuration busy.

    A request that shares its steps with a batch takes of the devices only its part of them; what
    it waits for beyond that delays nobody else. So a stage is kept busy for its share of the
    prompt's pass and of the output's steps divided by the batch, and the rest is ``delay_s``. All
    objectives of a kind are turned into one for its end: the delay is what makes it miss that one
    exactly if it would miss any of them. ``delay_s`` may be negative, therefore.

    A configuration on which an objective can't be met even by a request that is alone there is as
    good as none for the model.
    """
    shape = (len(configs), len(kinds.models))
    max_stages = max(config.parallel.pipeline for config in configs)
    stages_s = np.full((*shape, max_stages), np.inf, np.float32)
    delay_s = np.zeros(shape, np.float32)
    model_bytes = np.full((len(configs), len(models)), np.inf)
    for number, (config, limit) in enumerate(zip(configs, limits, strict=True)):
        stages_s[number, :, config.parallel.pipeline :] = 0.0
        for index, model in enumerate(models):
            placed = place(costs.cost(model.name, config), model, limit)
            if placed is None:
                continue
            model_bytes[number, index] = placed.num_bytes
            for kind in np.flatnonzero(kinds.models == index):
                service = placed.point.service(
                    placed.cost, kinds.prompt_tokens[kind], kinds.output_tokens[kind]
                )
                shares = placed.cost.stage_shares
                stages_s[number, kind, : len(shares)] = [s * service.busy_s for s in shares]
                delay_s[number, kind] = _delay_s(model.objectives, service)
    return ServiceTimes(
        stages_s=stages_s,
        num_stages=np.array([config.parallel.pipeline for config in configs], np.int32),
        delay_s=delay_s,
        overhead_s=0.0,
        model_bytes=model_bytes,
        budget_bytes=np.array([float(limit.budget_bytes) for limit in limits]),
        num_devices=np.array([config.num_devices for config in configs], np.int32),
    )


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model on a configuration: its cost, its batch, and what it takes of the fullest device."""

    cost: ModelCost
    point: OperatingPoint
    num_bytes: int


def place(cost: ModelCost | None, model: PlannedModel, limit: GroupLimits) -> PlacedModel | None:
    """How a model would run on a configuration; None if it can't."""
    if cost is None:
        return None
    weights = max(cost.weight_bytes)
    free_bytes = limit.budget_bytes - weights
    point = operating_point(cost, model.demands, model.objectives, free_bytes, limit.max_num_seqs)
    if point is None:
        return None
    return PlacedModel(cost, point, weights + kv_bytes(cost, model.demands, point, free_bytes))


def _slo_s(objectives: Objectives) -> float:
    limits = [limit for limit in (objectives.ttft_s, objectives.e2e_s) if limit is not None]
    return max(limits, default=math.inf)


def _delay_s(objectives: Objectives, service: Service) -> float:
    """What comes after the stages, so that meeting the one objective is meeting all."""
    slo_s = _slo_s(objectives)
    if math.isinf(slo_s):
        return service.e2e_s - service.busy_s
    # What may have passed until the last stage is free again.
    allowed_s = min(
        limit - (point_s - service.busy_s)
        for limit, point_s in (
            (objectives.ttft_s, service.ttft_s),
            (objectives.e2e_s, service.e2e_s),
        )
        if limit is not None
    )
    return slo_s - allowed_s
