"""One GPU, without Ray: kernels and engine right, then measured against the device's ceilings.

Run: PYTHONPATH=. python3 tests/perf/gpu.py [--json OUT] [--budget 460] [--only NAME ...] [--smoke].
What fails or takes too long is said, and the rest goes on; the JSON is written after each section.
Weights are random, of Llama 3 8B's shape in bfloat16. ``--smoke`` takes every way at tiny sizes on
the CPU: Triton's kernels if TRITON_INTERPRET=1 is set, else the reference.
"""

import argparse
import importlib
import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from gpu_bench import Bench, Found
from gpu_engine import Engines
from gpu_kernels import (
    measure_ceilings,
    measure_decode_attention,
    measure_linears,
    measure_prefill_attention,
)
from gpu_ops import check_ops
from gpu_peers import measure_transformers
from gpu_swap import measure_overlap, measure_swapping
from machine import describe_machine

from fabric.engine.device import describe_device, open_device
from fabric.engine.engine_timer import EngineTimer
from kernels.dispatch import select_backend
from kernels.ops import Backend
from kernels.reference import ReferenceBackend

PACKAGES = ("torch", "triton", "transformers")


def sections(engines: Engines) -> dict[str, tuple[Callable[[Bench, Found], None], float]]:
    """What is measured, in this order, and the most seconds that each may take."""

    def overlap(bench: Bench, found: Found) -> None:
        timer = None if engines.built is None else EngineTimer(engines.built)
        measure_overlap(bench, found, timer)

    def peers(bench: Bench, found: Found) -> None:
        engines.close()
        measure_transformers(bench, found)

    return {
        "ceilings": (measure_ceilings, 30.0),
        "ops": (check_ops, 100.0),
        "decode_attention": (measure_decode_attention, 40.0),
        "prefill_attention": (measure_prefill_attention, 30.0),
        "linears": (measure_linears, 60.0),
        "exactness": (engines.check_exactness, 90.0),
        "swapping": (measure_swapping, 45.0),
        "load": (engines.load, 90.0),
        "decode": (engines.measure_decode, 60.0),
        "prefill": (engines.measure_prefill, 60.0),
        "batch": (engines.measure_batch, 60.0),
        "profile": (engines.profile, 30.0),
        "overlap": (overlap, 40.0),
        "transformers": (peers, 150.0),
        "quantized": (engines.measure_quantized, 60.0),
    }


def main() -> int:
    options = _options()
    device = torch.device("cpu") if options.smoke else open_device("cuda")
    setting = {
        "gpu": describe_device(device),
        **describe_machine(*(name for name in PACKAGES if _is_there(name))),
        "cuda": torch.version.cuda,
        **{name: str(value) for name, value in vars(options).items()},
    }
    bench = Bench(
        device=device,
        backend=_backend(device),
        is_smoke=options.smoke,
        setting=setting,
        json_path=options.json,
        end_s=time.monotonic() + options.budget,
    )
    setting["backend"] = type(bench.backend).__name__
    for name, value in setting.items():
        print(f"{name:44} {value}")
    engines = Engines(bench)
    torch.set_grad_enabled(False)
    for name, (run, limit_s) in sections(engines).items():
        if not options.only or name in options.only:
            # Who only looks whether all works has as long as a busy machine needs.
            bench.section(name, run, limit_s * bench.size(1, 5))
    engines.close()
    failed = [name for name, found in bench.figures.items() if "error" in found]
    print(f"\nfailed sections: {', '.join(failed) or 'none'}")
    for bar in bench.bars.values():
        print(bar.line())
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--budget", type=float, default=460.0, help="seconds of all sections")
    parser.add_argument("--only", nargs="+", default=[], help="sections; the others are left out")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    return parser.parse_args()


def _backend(device: torch.device) -> Backend:
    if device.type == "cuda":
        return select_backend("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        return ReferenceBackend()
    module = importlib.import_module("kernels.triton.backend")
    backend: Backend = module.TritonBackend(device)
    return backend


def _is_there(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
