"""What a device group is told: what to load, how to schedule, where to listen. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric.core.plan import ParallelConfig
from fabric.core.weights import Quantization
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
class ModelSettings:
    """One model of a device group: what to load, and what it may take.

    ``model`` is the id that requests name. With ``quantization`` the weights of linear layers are
    stored as integers, those of the head with 8 bits at least. While it is resident, ``min_share``
    of the device's slabs are kept for its KV whatever others need, and it gets ``max_share`` of
    them at most. ``pinned`` weights stay on the device; ``starts`` is where they are at first, as
    far as there is room. ``profile`` is a file with measured times; None: a brief one is measured
    if anything needs it.
    """

    model: str
    source: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Quantization = "none"
    max_model_len: int | None = None
    min_share: float = 0.0
    max_share: float = 1.0
    pinned: bool = False
    starts: Literal["resident", "host", "cold"] = "resident"
    profile: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What one worker loads and how much memory it takes.

    ``memory_bytes`` are what weights and KV of all models may take on the device together; None:
    all weights and ``kv_cache_bytes``. It is given out in slabs of ``slab_bytes`` (None: chosen
    to suit the models' blocks). Host memory keeps ``host_weight_bytes`` of weights, so that they
    come to the device sooner, in files below ``host_weight_dir`` that all workers of a host map
    (None: a folder of the user's in shared memory). ``device`` is ``cpu``, ``cuda`` or ``cuda:N``;
    ``backend`` None takes the best one that it has. On a GPU, ``cuda_graphs`` has iterations that
    decode recorded and replayed.
    """

    models: tuple[ModelSettings, ...]
    cache_dir: Path
    device: str = "cpu"
    kv_cache_bytes: int = 512 * 2**20
    memory_bytes: int | None = None
    slab_bytes: int | None = None
    host_weight_bytes: int = 0
    host_weight_dir: Path | None = None
    block_size: int = 16
    num_threads: int | None = None
    backend: str | None = None
    cuda_graphs: bool = True
    parking: ParkingSettings = field(default_factory=ParkingSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One engine: its workers, its scheduler and whether prefixes are cached.

    With more than one device, each has a worker of these settings; ``layer_split`` are the layers
    of each pipeline stage, None: as even as can be. Each model's own context length caps
    ``scheduler.max_model_len``. With ``needs_times``, models are profiled whatever the policy is.
    """

    worker: WorkerSettings
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    prefix_cache: bool = True
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    layer_split: tuple[int, ...] | None = None
    needs_times: bool = False
