"""How fast blocks are swapped out and in, and what a decode beside it notices of that."""

import queue
import random
import time
from collections.abc import Callable

import torch
from gpu_bench import Bench, Found

from fabric.engine.arena import Arena
from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.cuda_copies import CudaBlocks
from fabric.engine.device_blocks import BlockFormat, CpuBlocks, DeviceBlocks
from fabric.engine.engine_timer import EngineTimer, Workload
from fabric.engine.host_tier import HostTier, OwnArena, host_bytes_of
from fabric.engine.memory_plan import STEP_BYTES, DeviceMemory, rounded_up
from fabric.engine.mover import ModelBlocks, Mover
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer, TransferResult

GIB = 2**30
# Blocks of 16 tokens of Llama 3 8B, and of SmolLM2-135M.
SHAPES = {"2 MiB": (32, 2, 8, 16, 128), "360 KiB": (30, 2, 3, 16, 64)}
SMOKE_SHAPES = {"2 MiB": (2, 2, 2, 16, 16), "360 KiB": (1, 2, 1, 16, 8)}
TIMEOUT_S = 60.0


class Swapping:
    """Blocks on a device, slots in host memory, and the engine's own mover between them."""

    def __init__(self, bench: Bench, shape: tuple[int, ...], num_bytes: int) -> None:
        self._bench = bench
        block = BlockFormat(shape, torch.bfloat16)
        self.num_blocks = num_bytes // block.block_bytes
        self.num_bytes = self.num_blocks * block.block_bytes
        slab_bytes = rounded_up(self.num_blocks * rounded_up(block.block_bytes, STEP_BYTES), 4096)
        memory = DeviceMemory(slab_bytes, 1, (0,), (self.num_blocks,))
        self._addresses = BlockAddresses.in_slabs(memory, 0, block.block_bytes)
        self._cache = Arena(1, slab_bytes, bench.device).view(block)
        tier = HostTier(OwnArena(host_bytes_of(self.num_blocks, block.block_bytes)), block)
        device = self._device_blocks()
        for host in tier.memory:
            device.pin(host)
        self._results: queue.SimpleQueue[TransferResult] = queue.SimpleQueue()
        models = [ModelBlocks(device, {Tier.HOST: tier}, block.block_bytes)]
        self._mover = Mover(models, ParkingSettings(), self._results.put)
        self._number = 0

    def _device_blocks(self) -> DeviceBlocks:
        if self._bench.is_cuda:
            return CudaBlocks(self._cache, torch.cuda, self._addresses)
        return CpuBlocks(self._cache, self._bench.backend, self._addresses)

    def begin(self, direction: Direction, *, is_scattered: bool) -> None:
        """Queue a transfer of all blocks."""
        blocks = list(range(self.num_blocks))
        if is_scattered:
            random.Random(1).shuffle(blocks)
        pairs = tuple(zip(blocks, range(self.num_blocks), strict=True))
        self._number += 1
        transfer = Transfer(self._number, direction, Tier.HOST, pairs)
        self._mover.move(BlockOrders((), (transfer,)))

    def wait(self) -> None:
        """Wait for the oldest transfer."""
        result = self._results.get(timeout=TIMEOUT_S)
        if result.error:
            raise RuntimeError(result.error)

    def bytes_per_s(self, direction: Direction, *, is_scattered: bool) -> float:
        """Of the third of three transfers."""
        for _ in range(3):
            start_s = time.perf_counter()
            self.begin(direction, is_scattered=is_scattered)
            self.wait()
            elapsed_s = time.perf_counter() - start_s
        return self.num_bytes / elapsed_s

    def check(self) -> None:
        """What goes out and is lost on the device comes back."""
        steps = torch.from_numpy(self._addresses.steps(range(self.num_blocks)))
        steps = steps.to(self._bench.device)
        marks = torch.arange(self.num_blocks, device=self._bench.device) % 251
        shape = (-1, *(1,) * (self._cache.dim() - 1))
        blocks = marks.to(self._cache.dtype).view(shape)
        self._cache[steps] = blocks.expand(self.num_blocks, *self._cache.shape[1:])
        for direction in (Direction.OUT, Direction.IN):
            self.begin(direction, is_scattered=True)
            self.wait()
            if direction is Direction.OUT:
                self._cache[steps] = torch.zeros_like(blocks)
        if not torch.equal(self._cache[steps][:, 0, 0, 0, 0, 0], marks.to(self._cache.dtype)):
            raise AssertionError("blocks are not what they were")

    def close(self) -> None:
        self._mover.close()


def measure_swapping(bench: Bench, found: Found) -> None:
    """Bandwidth through the engine's mover, by size of blocks and whether they lie together."""
    shapes = SMOKE_SHAPES if bench.is_smoke else SHAPES
    shares = {}
    for label, shape in shapes.items():
        swapping = Swapping(bench, shape, bench.size(2 * GIB, 2**16))
        try:
            swapping.check()
            for direction in (Direction.OUT, Direction.IN):
                ceiling = bench.ceiling(f"pinned_{direction.name.lower()}_bytes_per_s")
                for is_scattered in (False, True):
                    rate = swapping.bytes_per_s(direction, is_scattered=is_scattered)
                    where = "scattered" if is_scattered else "together"
                    found[f"{direction.name.lower()} {label} {where}"] = rate
                    shares[direction, label, is_scattered] = rate / ceiling
        finally:
            swapping.close()
    # The bars are for the large model's blocks wherever they lie.
    for direction in (Direction.OUT, Direction.IN):
        worst = min(shares[direction, "2 MiB", scattered] for scattered in (False, True))
        bench.meet(f"swap_{direction.name.lower()}_of_pinned_bandwidth", worst)


def measure_overlap(bench: Bench, found: Found, timer: EngineTimer | None) -> None:
    """Copies beside a decode, or beside matrix products if there is no engine."""
    shapes = SMOKE_SHAPES if bench.is_smoke else SHAPES
    swapping = Swapping(bench, shapes["2 MiB"], bench.size(2 * GIB, 2**16))
    work = _decode(bench, timer) if timer is not None else _products(bench)
    found["work"] = "decode" if timer is not None else "matrix products"

    def copy(num_transfers: int) -> None:
        for i in range(num_transfers):
            swapping.begin(Direction.IN if i % 2 else Direction.OUT, is_scattered=True)
        for _ in range(num_transfers):
            swapping.wait()

    try:
        copy(2)
        work()
        work_s, pair_s = _timed(work), _timed(lambda: copy(2))
        num_transfers = 2 * max(1, round(work_s / pair_s))
        copies_s = _timed(lambda: copy(num_transfers))
        start_s = time.perf_counter()
        for i in range(num_transfers):
            swapping.begin(Direction.IN if i % 2 else Direction.OUT, is_scattered=True)
        work()
        beside_s = time.perf_counter() - start_s
        for _ in range(num_transfers):
            swapping.wait()
        both_s = time.perf_counter() - start_s
    finally:
        swapping.close()
    found["work_alone_s"], found["copies_alone_s"] = work_s, copies_s
    found["work_beside_copies_s"], found["both_s"] = beside_s, both_s
    found["work_slowdown"] = beside_s / work_s
    found["copies_bytes_per_s"] = num_transfers * swapping.num_bytes / both_s
    bench.meet("swap_beside_decode_over_longer", both_s / max(work_s, copies_s))


def _decode(bench: Bench, timer: EngineTimer) -> Callable[[], None]:
    workload = Workload((bench.size(128, 8),), bench.size(128, 4))
    return lambda: timer.run(workload) and None


def _products(bench: Bench) -> Callable[[], None]:
    a = bench.randn(bench.size(4096, 32), bench.size(4096, 32), dtype=torch.bfloat16)

    def run() -> None:
        for _ in range(bench.size(2000, 2)):
            torch.matmul(a, a)
        bench.synchronize()

    return run


def _timed(run: Callable[[], None]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s
