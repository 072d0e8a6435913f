"""Ways to share cores and memory among models: partitioned, by the system's scheduler, by us.

``partitioned``     (a1) an engine a model, with a share of the memory and of the processor time
``time_shared``     (a2) the same, but whose turn it is on the cores is left to the system
``shared``          (b) one engine with all models and all memory

Shares are in proportion to the models' popularity, as whoever cuts up a device would do; memory
for one request of the longest kind is the least. The engines of (a1) and (a2) are the same
processes: the limit on processor time is put on and taken off.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cpu_quota import CpuQuota, QuotaError, add_all, open_quota
from engine_process import Fleet, Place
from random_llama import Shape, write_checkpoint

from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.scheduler.policies import PolicyConfig, PolicyName
from fabric.scheduler.settings import SchedulerConfig

BLOCK_SIZE = 16
ITEM_BYTES = 2
PARTITIONED, TIME_SHARED, SHARED = "a1 partitioned", "a2 time-shared", "b shared"


@dataclass(frozen=True)
class Hosting:
    """What is hosted: models of one shape with these shares of the requests, in how much memory.

    ``kv_tokens`` of all models together are in the memory beside the weights.
    """

    shape: Shape
    shares: tuple[float, ...]
    context: int
    kv_tokens: int
    num_threads: int
    max_num_batched_tokens: int
    policy: PolicyName

    @property
    def names(self) -> list[str]:
        """The models."""
        return [f"model-{i}" for i in range(len(self.shares))]

    @property
    def token_bytes(self) -> int:
        """KV of one token."""
        shape = self.shape
        head_size = shape.hidden_size // shape.num_heads
        return shape.num_layers * 2 * shape.num_kv_heads * head_size * ITEM_BYTES


@dataclass(frozen=True)
class Setup:
    """Processes that serve all models, and how much of the processors each may take."""

    name: str
    fleet: Fleet
    quotas: tuple[CpuQuota, ...] = ()
    num_cores: tuple[float | None, ...] = ()

    def enter(self) -> None:
        """Put this setup's limits on, or take another one's off."""
        for quota, num_cores in zip(self.quotas, self.num_cores, strict=True):
            quota.limit(num_cores)


def write_models(hosting: Hosting, folder: Path) -> int:
    """Write the models' checkpoints; return the bytes of the weights of one."""
    for seed, name in enumerate(hosting.names):
        (folder / name).mkdir()
        num_parameters = write_checkpoint(folder / name, hosting.shape, seed)
    return num_parameters * ITEM_BYTES


def partition(shares: Sequence[float], total: int, least: int) -> list[int]:
    """Cut a total in proportion to shares; nobody gets less than ``least``, the others pay."""
    amounts = [max(least, int(total * share)) for share in shares]
    while (excess := sum(amounts) - total) > 0:
        payers = [i for i, amount in enumerate(amounts) if amount > least]
        if not payers:
            raise ValueError(f"{total} does not hold {len(shares)} times {least}")
        largest = max(payers, key=amounts.__getitem__)
        amounts[largest] -= min(excess, amounts[largest] - least, max(1, excess // len(payers)))
    return amounts


def open_setups(
    hosting: Hosting, weight_bytes: int, folder: Path, stack: ExitStack
) -> dict[str, Setup]:
    """Start all setups; without a way to limit processor time, there is no ``a1``."""
    num_blocks = hosting.kv_tokens // BLOCK_SIZE
    blocks = partition(hosting.shares, num_blocks, -(-hosting.context // BLOCK_SIZE))
    block_bytes = BLOCK_SIZE * hosting.token_bytes
    each = [
        Place(_settings(hosting, [name], weight_bytes + own * block_bytes, folder))
        for name, own in zip(hosting.names, blocks, strict=True)
    ]
    memory_bytes = len(hosting.names) * weight_bytes + num_blocks * block_bytes
    fleet = Fleet(each, stack)
    shared = Fleet([Place(_settings(hosting, hosting.names, memory_bytes, folder))], stack)
    setups = {SHARED: Setup(SHARED, shared)}
    try:
        quotas = _limit(fleet, stack)
    except QuotaError as error:
        print(f"SKIPPED {PARTITIONED}: {error}")
        return {TIME_SHARED: Setup(TIME_SHARED, fleet), **setups}
    num_cores = len(os.sched_getaffinity(0))
    limits = tuple(share * num_cores for share in hosting.shares)
    return {
        PARTITIONED: Setup(PARTITIONED, fleet, quotas, limits),
        TIME_SHARED: Setup(TIME_SHARED, fleet, quotas, (None,) * len(quotas)),
        **setups,
    }


def _limit(fleet: Fleet, stack: ExitStack) -> tuple[CpuQuota, ...]:
    """A group for each process, in which it must be until it ends."""
    quotas = []
    for number, pid in enumerate(fleet.pids):
        quota = open_quota(f"llm-fabric-bench-{number}")
        stack.callback(quota.close)
        add_all(quota, [pid])
        quotas.append(quota)
    stack.callback(fleet.close)
    return tuple(quotas)


def _settings(
    hosting: Hosting, names: Sequence[str], memory_bytes: int, folder: Path
) -> EngineSettings:
    models = tuple(
        ModelSettings(
            model=name, source=str(folder / name), max_model_len=hosting.context, pinned=True
        )
        for name in names
    )
    worker = WorkerSettings(
        models=models,
        cache_dir=folder,
        memory_bytes=memory_bytes,
        block_size=BLOCK_SIZE,
        num_threads=hosting.num_threads,
    )
    scheduler = SchedulerConfig(
        max_num_seqs=64,
        max_num_batched_tokens=hosting.max_num_batched_tokens,
        max_num_waiting=10**6,
        policy=PolicyConfig(hosting.policy),
    )
    return EngineSettings(worker=worker, scheduler=scheduler, prefix_cache=False)
