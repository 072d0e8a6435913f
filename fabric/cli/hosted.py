"""What ``fabric status`` shows of device groups' memory, and of the models that share it."""

from fabric.cli.table import format_table
from fabric.client import GroupStatus, LoadReport, ModelLoad

_HEADER = (
    "GROUP",
    "MODEL",
    "WEIGHTS",
    "PINNED",
    "RUNNING",
    "WAITING",
    "QUEUED TOKENS",
    "KV SLABS",
    "IDLE",
    "WEIGHTS MIB",
    "LOADS",
    "LAST LOAD S",
)
_MIB = 2**20


def format_models(groups: tuple[GroupStatus, ...], width: int | None) -> str:
    """A table of all groups' models; empty if no group tells of any."""
    rows = [_row(group.name, load) for group in groups for load in group.load.models]
    return format_table(_HEADER, rows, width=width, num_keys=2) if rows else ""


def describe_memory(load: LoadReport) -> str:
    """Who has the slabs of a group's devices, and what of them is in no use."""
    num_kv = sum(model.num_slabs for model in load.models)
    num_idle = sum(model.num_idle_slabs for model in load.models)
    num_of_weights = load.num_slabs - load.num_free_slabs - num_kv
    return (
        f"{load.num_slabs} slabs of {_mib(load.slab_bytes)} MiB: {num_of_weights} weights, "
        f"{num_kv} KV ({num_idle} idle), {load.num_free_slabs} free; "
        f"{_mib(load.fragmented_bytes)} MiB fragmented"
    )


def describe_problems(load: LoadReport) -> list[str]:
    """Why weights didn't get where they were to be, a line for each model that this befell."""
    return [
        f"model {model.model} could not be loaded: {' '.join(model.problem.split())}"
        for model in load.models
        if model.problem
    ]


def _row(group: str, load: ModelLoad) -> tuple[str, ...]:
    return (
        group,
        load.model,
        load.state,
        "yes" if load.pinned else "no",
        str(load.num_running),
        str(load.num_waiting),
        f"{load.num_queued_tokens:,}",
        str(load.num_slabs),
        str(load.num_idle_slabs),
        _mib(load.weight_bytes),
        str(load.num_loads),
        f"{load.load_s:.2f}" if load.num_loads else "-",
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:,.1f}"
