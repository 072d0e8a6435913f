"""What the parts of gpu.py share: the device, how it is timed, and what has been found so far."""

import contextlib
import json
import math
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from machine import verdict

from kernels.ops import Backend

MIN_SECTION_S = 3.0
SAMPLE_S = 0.02

Found = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach; NaN where it could not be measured."""

    name: str
    target: float
    is_least: bool
    value: float = math.nan

    def line(self) -> str:
        is_met = self.value >= self.target if self.is_least else self.value <= self.target
        return f"BAR {self.name} {self.value:.3f} {self.target:g} {verdict(is_met)}"


BARS = (
    Bar("paged_decode_of_copy_bandwidth", 0.80, is_least=True),
    Bar("paged_decode_over_identity_table", 1.10, is_least=False),
    Bar("decode_of_bandwidth_roofline", 0.80, is_least=True),
    Bar("prefill_4k_of_matrix_rate", 0.60, is_least=True),
    Bar("batch_over_transformers", 2.0, is_least=True),
    Bar("swap_out_of_pinned_bandwidth", 0.85, is_least=True),
    Bar("swap_in_of_pinned_bandwidth", 0.85, is_least=True),
    # Of both at once, over the one that takes longer alone.
    Bar("swap_beside_decode_over_longer", 1.10, is_least=False),
)


class OutOfTime(BaseException):
    """A section has had its time; nobody on the way takes it for a failure of one of its parts."""


@dataclass
class Bench:
    """A run: what is measured on, and its figures, written after each section."""

    device: torch.device
    backend: Backend
    is_smoke: bool
    setting: Found
    json_path: Path | None
    end_s: float
    figures: dict[str, Found] = field(default_factory=dict)
    bars: dict[str, Bar] = field(default_factory=lambda: {bar.name: bar for bar in BARS})

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def size(self, full: int, smoke: int) -> int:
        """A size, and what stands for it where only the way is tested."""
        return smoke if self.is_smoke else full

    def ceiling(self, name: str) -> float:
        """A measured limit of the device; NaN before it is measured."""
        return float(self.figures.get("ceilings", {}).get(name, math.nan))

    def meet(self, name: str, value: float) -> None:
        """Take a bar's figure down."""
        self.bars[name] = Bar(name, self.bars[name].target, self.bars[name].is_least, value)

    def section(self, name: str, run: "Callable[[Bench, Found], None]", limit_s: float) -> None:
        """Run a section; what it raises, and what it has found until then, is kept."""
        found = self.figures[name] = {}
        limit_s = min(limit_s, self.end_s - time.monotonic())
        print(f"\n== {name}", flush=True)
        if limit_s < MIN_SECTION_S:
            found["error"] = "no time was left"
        else:
            start_s = time.monotonic()
            try:
                with time_limit(limit_s):
                    run(self, found)
            except (Exception, OutOfTime) as error:
                found["error"] = f"{type(error).__name__}: {error}"[:2000]
                traceback.print_exc()
            found["section_s"] = time.monotonic() - start_s
        for key, value in found.items():
            print(f"{key:44} {_shown(value)}", flush=True)
        self.write()

    def write(self) -> None:
        if self.json_path is not None:
            result = {
                "setting": self.setting,
                "figures": self.figures,
                "bars": [asdict(bar) for bar in self.bars.values()],
            }
            self.json_path.write_text(json.dumps(result, indent=1, default=str) + "\n")

    def seconds(self, run: Callable[[], object], num_samples: int = 5) -> float:
        """Median seconds of a call, of samples that are long enough to be timed."""
        run()
        self.synchronize()
        once_s = self._sample(run, 1)
        least_s = 0.0 if self.is_smoke else SAMPLE_S
        count = max(1, math.ceil(least_s / max(once_s, 1e-7)))
        samples = [self._sample(run, count) for _ in range(1 if self.is_smoke else num_samples)]
        return statistics.median(samples) / count

    def graphed_seconds(self, run: Callable[[], object]) -> float:
        """The same without the host's part, where the device can replay what it was given."""
        if not self.is_cuda:
            return self.seconds(run)
        for _ in range(2):
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
        return self.seconds(graph.replay)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, device=self.device)
        return drawn.to(dtype)

    def _sample(self, run: Callable[[], object], count: int) -> float:
        if not self.is_cuda:
            start_s = time.perf_counter()
            for _ in range(count):
                run()
            return time.perf_counter() - start_s
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


@contextlib.contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise OutOfTime between two operations of the main thread once the time is over."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"{limit_s:.0f} s are over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and value and isinstance(value[0], list | tuple):
        return "\n" + "\n".join("    " + "  ".join(map(_shown, row)) for row in value)
    return str(value)
