"""A placement as the file that ``fabric serve`` takes."""

from collections.abc import Sequence

import yaml

from fabric.core.request import Objectives
from placement.config.models import ModelSection
from placement.config.schema import PlanInput
from placement.groups import Placement

# Device groups run on these; plans for others wait for a fabric that does.
SERVED_DEVICES = ("cpu",)


def plan_yaml(
    inputs: PlanInput,
    placement: Placement,
    objectives: Sequence[Objectives],
    memory_bytes: Sequence[int],
    max_model_lens: Sequence[int],
) -> str:
    """The ``models`` and ``groups`` of a fabric's configuration.

    Args:
        inputs: What was asked for; sources and limits are its.
        placement: The groups.
        objectives: Of each model of the input.
        memory_bytes: What each group may take of each of its devices.
        max_model_lens: Of each model of the input.
    """
    placed = sorted({model for group in placement.groups for model in group.models})
    models = [
        _model(inputs.models[index], objectives[index], max_model_lens[index]) for index in placed
    ]
    groups = [
        _group(inputs, placement, number, memory_bytes[number])
        for number in range(len(placement.groups))
    ]
    tree = {"models": models, "groups": groups}
    return str(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100))


def _model(section: ModelSection, objectives: Objectives, max_model_len: int) -> dict[str, object]:
    tree: dict[str, object] = {"id": section.id, "source": section.source or f"./{section.id}"}
    if section.dtype != "auto":
        tree["dtype"] = section.dtype
    if section.quantization != "none":
        tree["quantization"] = section.quantization
    limits = {
        name: round(value, 4)
        for name in ("ttft_s", "tpot_s", "e2e_s")
        if (value := getattr(objectives, name)) is not None
    }
    if objectives.refuse_if_late:
        limits["refuse_if_late"] = True
    return {**tree, "max_model_len": max_model_len, "objectives": limits}


def _group(
    inputs: PlanInput, placement: Placement, number: int, memory_bytes: int
) -> dict[str, object]:
    group, serving = placement.groups[number], inputs.serving
    parallel = placement.configs[group.config].parallel
    tree = {
        "name": group_name(number),
        "models": [placement.models[model] for model in group.models],
        "parallel": {"pipeline": parallel.pipeline, "tensor": parallel.tensor},
        "memory": memory_bytes,
        "block_size": serving.block_size,
        "max_num_seqs": serving.max_num_seqs,
        "max_num_batched_tokens": max(serving.max_num_batched_tokens, serving.max_num_seqs),
        "policy": {"name": serving.policy},
    }
    return tree if serving.num_threads is None else {**tree, "num_threads": serving.num_threads}


def unserved_types(inputs: PlanInput) -> tuple[str, ...]:
    """Device types of the input that no device group runs on yet."""
    alike = {name for name, own in inputs.device_types.items() if own.like in SERVED_DEVICES}
    names = {device.type for device in inputs.devices}
    return tuple(sorted(names - alike - set(SERVED_DEVICES)))


def group_name(number: int) -> str:
    """What the plan calls its groups."""
    return f"g{number}"
