"""What a device group is told: what to load, how to schedule, where to listen. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric.core.plan import ParallelConfig
from fabric.scheduler.settings import SchedulerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkingSettings:
    """Where a worker's KV blocks go when they leave the device, and how.

    ``host_bytes`` of host memory and ``disk_bytes`` of one file below ``disk_dir`` (None: the
    system's folder for temporary files), 0 for none. With ``keep``, the host memory belongs to a
    process of its own that listens in ``keeper_dir`` (None: a folder of the user's there), so that
    it outlives a worker that dies by ``linger_s``. ``debug`` checks every block's digest
    after its way back and poisons freed blocks. ``max_bytes_per_s`` slows copies down, and
    ``delay_s`` holds each transfer up: emulation and tests.
    """

    host_bytes: int = 0
    disk_bytes: int = 0
    disk_dir: Path | None = None
    keep: bool = False
    keeper_dir: Path | None = None
    linger_s: float = 30.0
    debug: bool = False
    num_copy_threads: int = 1
    max_bytes_per_s: float | None = None
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What one worker loads and how much memory it takes.

    ``model`` is the id that requests name; ``kv_cache_bytes`` is what KV blocks may take;
    ``backend`` None takes the best one that the device has.
    """

    model: str
    source: str
    cache_dir: Path
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_model_len: int | None = None
    kv_cache_bytes: int = 512 * 2**20
    block_size: int = 16
    num_threads: int | None = None
    backend: str | None = None
    parking: ParkingSettings = field(default_factory=ParkingSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One engine: its workers, its scheduler and whether prefixes are cached.

    With more than one device, each has a worker of these settings; ``layer_split`` are the layers
    of each pipeline stage, None: as even as can be. The model's own context length caps
    ``scheduler.max_model_len``. ``profile`` is a file with measured times; None: a brief one is
    measured if anything needs it.
    """

    worker: WorkerSettings
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    prefix_cache: bool = True
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    layer_split: tuple[int, ...] | None = None
    profile: Path | None = None
