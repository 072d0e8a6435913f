"""What a planner's input stands for: devices, configurations, models, their costs and limits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.request import Objectives
from placement.catalog import device, shape, shape_from_file
from placement.catalog.hf import DTYPE_BITS, QUANTIZED_BITS
from placement.config.models import ModelSection
from placement.config.schema import PlanInput
from placement.cost.composite import Costs
from placement.cost.model import ModelCost
from placement.devices import DeviceType, GroupConfig, Inventory
from placement.planning.costs import costs_of
from placement.planning.operating import Demands, step_s
from placement.planning.service_times import GroupLimits, PlannedModel
from placement.shape import ModelShape
from placement.workload.trace import Trace

# Groups that are looked at for what a model takes alone have up to so many devices.
MOST_DEVICES_ALONE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """Everything that planning goes by; numbers of models and configurations are places in it."""

    inputs: PlanInput
    inventory: Inventory
    costs: Costs
    configs: tuple[GroupConfig, ...]
    limits: tuple[GroupLimits, ...]
    models: tuple[PlannedModel, ...]
    unloaded: tuple["Unloaded", ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names."""
        return tuple(model.name for model in self.models)

    @property
    def objectives(self) -> tuple[Objectives, ...]:
        """The models' objectives."""
        return tuple(model.objectives for model in self.models)

    def source(self, model: int) -> str:
        """Where the model's costs on its smallest group come from."""
        return self.costs.source(self.models[model].name, self.unloaded[model].config) or "none"

    @property
    def config_types(self) -> tuple[int, ...]:
        """The number of each configuration's device type in the inventory."""
        numbers = {kind.name: number for number, kind in enumerate(self.inventory.types)}
        return tuple(numbers[config.device] for config in self.configs)


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model alone on the smallest group that holds it: the objectives' scale."""

    config: GroupConfig
    ttft_s: float
    tpot_s: float


def situation_of(inputs: PlanInput, trace: Trace) -> Situation:
    """Look up and check everything that an input names.

    Args:
        inputs: What the user says.
        trace: Requests as they are to come: rates and mean lengths are theirs.

    Raises:
        ConfigError: A device, model, profile or shape is not known, or no group holds a model.
    """
    inventory = inventory_of(inputs)
    configs = _configs(inputs, inventory)
    shapes = [shape_of(section) for section in inputs.models]
    lengths = [_prompt_tokens(trace, number) for number in range(len(inputs.models))]
    costs = costs_of(inputs, shapes, inventory.types, lengths)
    share = inputs.serving.memory_share
    budgets = {kind.name: int(kind.memory_bytes * share) for kind in inventory.types}
    limits = tuple(
        GroupLimits(budgets[config.device], inputs.serving.max_num_seqs) for config in configs
    )
    plenty = _plenty(inputs, inventory)
    models, unloaded = [], []
    for number, section in enumerate(inputs.models):
        demands = _demands(trace, number, _max_model_len(section, shapes[number]))
        alone = _unloaded(costs, section.id, demands, plenty)
        models.append(PlannedModel(section.id, demands, _objectives(inputs, section, alone)))
        unloaded.append(alone)
    return Situation(inputs, inventory, costs, configs, limits, tuple(models), tuple(unloaded))


def inventory_of(inputs: PlanInput) -> Inventory:
    """The devices that there are.

    Raises:
        ConfigError: A type is neither the input's own nor in the catalog.
    """
    types = [_device_type(inputs, section.type) for section in inputs.devices]
    return Inventory(tuple(types), tuple(section.count for section in inputs.devices))


def _device_type(inputs: PlanInput, name: str) -> DeviceType:
    own = inputs.device_types.get(name)
    if own is None:
        return device(name)
    return own.device_type(name)


def shape_of(section: ModelSection) -> ModelShape | None:
    """The sizes of a model; None if only profiles say something of it.

    Raises:
        ConfigError: The catalog doesn't have it, or its config.json is wrong.
    """
    if section.config is not None:
        found = shape_from_file(section.config, section.id)
    elif section.shape is not None:
        found = shape(section.shape)
    else:
        return None
    # What it is served in, whatever it is stored in.
    served_bits = DTYPE_BITS.get(section.dtype)
    return replace(
        found,
        weight_bits=section.weight_bits
        or QUANTIZED_BITS.get(section.quantization)
        or served_bits
        or found.weight_bits,
        kv_bits=section.kv_bits or served_bits or found.kv_bits,
    )


def _max_model_len(section: ModelSection, found: ModelShape | None) -> int:
    if section.max_model_len is not None:
        return section.max_model_len
    if found is None:
        raise ConfigError(f"models: {section.id}: max_model_len is needed, since no shape is given")
    return found.max_model_len


def _plenty(inputs: PlanInput, inventory: Inventory) -> list[tuple[GroupConfig, int]]:
    """Configurations, and bytes of a device, however few devices there are.

    What a model takes alone, and so its objectives, must not depend on how many are there.
    """
    counts = tuple(max(MOST_DEVICES_ALONE, count) for count in inventory.counts)
    return [
        (config, budget)
        for kind, count in zip(inventory.types, counts, strict=True)
        for budget in [int(kind.memory_bytes * inputs.serving.memory_share)]
        for config in _configs(inputs, Inventory((kind,), (count,)))
    ]


def _configs(inputs: PlanInput, inventory: Inventory) -> tuple[GroupConfig, ...]:
    """Stages times ranks of every allowed size, on every type of device."""
    search, found = inputs.search, []
    for kind, count in zip(inventory.types, inventory.counts, strict=True):
        sizes = search.group_sizes or [2**power for power in range(count.bit_length())]
        for size in sorted({size for size in sizes if size <= count}):
            for tensor in _divisors(size, min(search.max_tensor, kind.devices_per_node)):
                if size // tensor <= search.max_pipeline:
                    found.append(GroupConfig(kind.name, ParallelConfig(size // tensor, tensor)))
    if not found:
        raise ConfigError(f"search.group_sizes is {search.group_sizes}; none fits the devices")
    return tuple(found)


def _divisors(size: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(size, most) + 1) if size % divisor == 0]


def _demands(trace: Trace, number: int, max_model_len: int) -> Demands:
    own = trace.models == number
    count = int(own.sum())
    if not count:
        return Demands(0.0, 1.0, 1.0, max_model_len)
    return Demands(
        count / trace.duration_s,
        float(trace.prompt_tokens[own].mean()),
        float(trace.output_tokens[own].mean()),
        max_model_len,
    )


def _prompt_tokens(trace: Trace, number: int) -> int:
    own = trace.prompt_tokens[trace.models == number]
    return max(1, round(float(own.mean()))) if len(own) else 1


def _unloaded(
    costs: Costs, model: str, demands: Demands, configs: Sequence[tuple[GroupConfig, int]]
) -> Unloaded:
    """On the smallest group that holds the model, the quickest of them.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.1: objectives are multiples of the latency
    on as few devices as hold the model.
    """
    found: list[tuple[int, float, Unloaded]] = []
    for config, budget_bytes in configs:
        cost = costs.cost(model, config)
        if cost is not None and _holds(cost, demands, budget_bytes):
            ttft_s = cost.profile.prefill_s(round(demands.prompt_tokens)) + cost.overhead_s
            tpot_s = step_s(cost, 1, demands.mean_context)
            e2e_s = ttft_s + demands.output_tokens * tpot_s
            found.append((config.num_devices, e2e_s, Unloaded(config, ttft_s, tpot_s)))
    if not found:
        raise ConfigError(
            f"models: {model}: no group of the devices holds its weights and the KV of "
            f"{demands.max_model_len} tokens (max_model_len)"
        )
    return min(found, key=lambda item: item[:2])[2]


def _holds(cost: ModelCost, demands: Demands, budget_bytes: int) -> bool:
    needed = max(
        weights + demands.max_model_len * token
        for weights, token in zip(cost.weight_bytes, cost.kv_token_bytes, strict=True)
    )
    return needed <= budget_bytes


def _objectives(inputs: PlanInput, section: ModelSection, alone: Unloaded) -> Objectives:
    """What the model says; what it leaves open about the first token is a multiple of the least.

    Without any limit on waiting, every queue would be good enough.
    """
    given, scale = section.objectives.objectives(), section.slo_scale or inputs.slo_scale
    if section.has_objectives:
        if given.ttft_s is None and given.e2e_s is None:
            given = replace(given, ttft_s=scale * alone.ttft_s)
        return given
    return replace(given, ttft_s=scale * alone.ttft_s, tpot_s=scale * alone.tpot_s)
