"""Reads measured stages in the form of AlpaServe's profiles.

The file is JSON: for each model a list of configurations, with ``dp`` (always 1), ``op`` (ranks of
a stage) and ``pp`` (stages); ``latency`` has, for each batch size, the seconds of the stages,
``weight_mem`` their bytes of weights, on each device.
Source: AlpaServe (Li et al., OSDI 2023), section 5.
"""

from collections.abc import Mapping

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.profile import CopySpeed, Profile
from fabric.kv.transfer import Direction, Tier
from placement.cost.json_tree import count_at, mapping_at, parse_json, positive_at
from placement.cost.model import ModelCost
from placement.cost.tables import TableEntry
from placement.devices import DeviceType, GroupConfig


def read_alpaserve(
    text: str, device: DeviceType, prompt_tokens: int, origin: str = "profile"
) -> tuple[TableEntry, ...]:
    """The entries of a file.

    Its models answer with one pass over their input: a request is a prompt and one token, which
    costs what the file says for a batch of one. An iteration of several sequences costs what it
    says for a batch of so many. Nothing is kept between iterations, so KV takes no memory.

    Args:
        text: The file's content.
        device: What was measured, which the file doesn't say.
        prompt_tokens: Tokens of a request, likewise.
        origin: What errors call the file.

    Raises:
        ConfigError: The file has another form; names the place.
    """
    entries: dict[tuple[str, ParallelConfig], TableEntry] = {}
    for model, rows in parse_json(text, origin).items():
        if not isinstance(rows, list):
            raise ConfigError(f"{origin}: {model} is no list of configurations")
        for number, row in enumerate(rows):
            entry = _entry(model, row, device, prompt_tokens, f"{origin}: {model}.{number}")
            key = model, entry.config.parallel
            before = entries.get(key)
            # Measured twice, the configuration with the faster slowest stage counts.
            if before is None or _slowest_s(entry) < _slowest_s(before):
                entries[key] = entry
    return tuple(entries.values())


def _entry(
    model: str, row: object, device: DeviceType, prompt_tokens: int, where: str
) -> TableEntry:
    values = mapping_at(row, where)
    tensor, pipeline = (positive_at(values.get(key), f"{where}.{key}") for key in ("op", "pp"))
    parallel = ParallelConfig(int(pipeline), int(tensor))
    stages_s = {
        count_at(size, f"{where}.latency"): _stages(stages, parallel, f"{where}.latency.{size}")
        for size, stages in mapping_at(values.get("latency"), f"{where}.latency").items()
    }
    if 1 not in stages_s:
        raise ConfigError(f"{where}.latency has no batch of 1")
    weights = _stages(values.get("weight_mem"), parallel, f"{where}.weight_mem")
    alone_s = sum(stages_s[1])
    cost = ModelCost(
        profile=_profile({size: sum(stages_s[size]) for size in sorted(stages_s)}, prompt_tokens),
        stage_shares=tuple(seconds / alone_s for seconds in stages_s[1]),
        weight_bytes=tuple(round(weight) for weight in weights),
        kv_token_bytes=(0,) * parallel.pipeline,
        load_s=max(weights) / device.host_bytes_per_s,
        fetch_s=sum(weights) * parallel.tensor / device.disk_bytes_per_s,
    )
    return TableEntry(model, GroupConfig(device.name, parallel), cost)


def _profile(seconds: Mapping[int, float], prompt_tokens: int) -> Profile:
    prefill = tuple((size * prompt_tokens, whole_s) for size, whole_s in seconds.items())
    decode = tuple((size, prompt_tokens, whole_s) for size, whole_s in seconds.items())
    # There are no blocks to copy.
    copies = tuple(CopySpeed(tier, way, 1e9) for tier in Tier for way in Direction)
    return Profile(prefill, decode, copies)


def _slowest_s(entry: TableEntry) -> float:
    return max(entry.cost.stage_shares) * entry.cost.profile.prefill[0][1]


def _stages(values: object, parallel: ParallelConfig, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != parallel.pipeline:
        raise ConfigError(f"{where} is {values!r}; {parallel.pipeline} stages are needed")
    return tuple(positive_at(value, where) for value in values)
