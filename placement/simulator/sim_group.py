"""Puts a simulated group's scheduler together, as its engine would."""

import math
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from fabric.core.request import ModelCard, ServedModel, ServicePace
from fabric.core.sampling import GenerationDefaults, RequestLimits
from fabric.core.weights import WeightResult
from fabric.engine.executor import HostedModel
from fabric.engine.memory_plan import plan_memory
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.weight_plan import weights_of
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.slabs import SlabPool
from fabric.kv.transfer import Direction, ParkingSpace, Tier, WorkerOrders
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.presence import Presence
from fabric.scheduler.residency import Residency
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig
from placement.simulator.sim_moves import SimulatedMoves
from placement.simulator.simulated import SimulatedGroup, SimulatedModel


@dataclass(frozen=True, slots=True)
class BuiltGroup:
    """A group's deciding half, and what stands for its devices; weights are where they start.

    ``can_wait_for_weights``: not all models are on the device for good.
    """

    scheduler: Scheduler
    residency: Residency
    slabs: SlabPool
    moves: SimulatedMoves
    served: tuple[ServedModel, ...]
    can_wait_for_weights: bool


def build_group(group: SimulatedGroup) -> BuiltGroup:
    """Build a group, and bring those weights to the device that start there.

    Raises:
        ConfigError: The memory doesn't hold the models.
    """
    settings, config = _worker_settings(group), _scheduler_config(group)
    hosted = [_hosted(model, group) for model in group.models]
    memory = plan_memory(settings, [model.size for model in hosted])
    slabs, numbers = SlabPool(memory.num_slabs), count(1)
    managers = [
        KVCacheManager(
            BlockPool(slabs, num_blocks), group.block_size, group.prefix_cache, model.space, numbers
        )
        for model, num_blocks in zip(hosted, memory.blocks_per_slab, strict=True)
    ]
    weights = weights_of(settings.models, hosted, memory)
    residency = Residency(weights, slabs, [kv.account for kv in managers], config.residency)
    moves = SimulatedMoves(
        [model.cost for model in group.models],
        [model.space for model in hosted],
        [0 < spec.host_bytes <= config.residency.host_bytes for spec in weights],
        group.parallel.num_devices,
    )
    _settle(residency, slabs, moves)
    scheduled = [
        ScheduledModel(
            model.share.model,
            kv,
            frozenset(),
            model.max_model_len,
            model.profile,
            host.block_bytes,
        )
        for model, kv, host in zip(group.models, managers, hosted, strict=True)
    ]
    scheduler = Scheduler(
        config, scheduled, presence=Presence(weights, slabs, residency, memory.slab_bytes)
    )
    served = tuple(_served(host, group, residency, number) for number, host in enumerate(hosted))
    fit = sum(spec.needed_slabs for spec in weights) <= memory.num_slabs
    starts = all(spec.starts == "resident" for spec in weights)
    return BuiltGroup(scheduler, residency, slabs, moves, served, not (fit and starts))


def _worker_settings(group: SimulatedGroup) -> WorkerSettings:
    shares = [model.share for model in group.models]
    return WorkerSettings(
        models=tuple(
            ModelSettings(
                model=share.model,
                source="",
                min_share=share.min_share,
                max_share=share.max_share,
                pinned=share.pinned,
                starts=share.starts,
            )
            for share in shares
        ),
        cache_dir=Path(),
        memory_bytes=group.memory_bytes,
        slab_bytes=group.slab_bytes,
        block_size=group.block_size,
    )


def _scheduler_config(group: SimulatedGroup) -> SchedulerConfig:
    """The group's, with an iteration in flight for each stage, and its models' weights.

    It runs ahead only if told to: a group that says nothing is served as on processors.
    """
    config = replace(group.scheduler, num_batches=group.parallel.pipeline)
    if config.fairness.model_weights:
        return config
    weights = {model.share.model: model.share.weight for model in group.models}
    return replace(config, fairness=replace(config.fairness, model_weights=weights))


def _hosted(model: SimulatedModel, group: SimulatedGroup) -> HostedModel:
    cost, name = model.cost, model.share.model
    block_bytes = max(cost.kv_token_bytes) * group.block_size
    group_bytes = sum(cost.kv_token_bytes) * group.parallel.tensor * group.block_size
    # What nobody knows the time of can't be simulated: such KV is dropped instead of parked.
    can_park = group_bytes and math.isfinite(
        max(cost.profile.copy_s(Tier.HOST, way, group_bytes) for way in Direction)
    )
    num_slots = group.host_bytes // len(group.models) // group_bytes if can_park else 0
    return HostedModel(
        card=ModelCard(name, "", model.max_model_len, 1, "", ""),
        defaults=GenerationDefaults(),
        weight_bytes=max(cost.weight_bytes),
        host_bytes=sum(cost.weight_bytes) * group.parallel.tensor,
        block_bytes=block_bytes,
        space=ParkingSpace(num_slots, 0, group_bytes),
    )


def _served(
    hosted: HostedModel, group: SimulatedGroup, residency: Residency, number: int
) -> ServedModel:
    """What routers are told of a model."""
    card, profile = hosted.card, group.models[number].profile
    fetch_s, load_s = residency.expected_s(number)
    pace = ServicePace(profile.prefill, profile.decode, load_s, fetch_s)
    limits = RequestLimits(card.max_model_len, card.vocab_size)
    return ServedModel(card, hosted.defaults, limits, pace)


def _settle(residency: Residency, slabs: SlabPool, moves: SimulatedMoves) -> None:
    """Let weights move, before the clock starts, until none is to move any more."""
    while True:
        orders = residency.plan((), 0.0)
        if orders:
            moves.begin(WorkerOrders(weights=orders, punched=slabs.take_punched()), 0.0)
        elif not residency.has_work:
            moves.forget_loads()
            return
        for result in moves.take_finished(float("inf")):
            assert isinstance(result, WeightResult), "nobody has moved blocks yet"
            residency.finish(result, 0.0)
