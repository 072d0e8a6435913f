"""How each subject is started: ours, and the peers of ``peers/set_up.sh``."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from engine_exports import export_folder, export_gguf, export_openvino
from engine_models import Model
from engine_subject import Launch
from peers.protocol import Task

ROOT = Path(__file__).resolve().parents[2]
OURS = "fabric"
PEERS = ("openvino", "vllm", "llamacpp", "transformers")
QUANTIZATIONS = ("none", "int8", "int4")
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What all subjects of a model have in common; ``task`` names what we load.

    ``peer_chunk`` are the most tokens of a peer's iteration; 0: as many as it chooses.
    """

    model: Model
    task: Task
    peers_dir: Path
    peer_chunk: int = 0

    def peer_task(self, checkpoint: Path, program: str = "") -> Task:
        """What a peer is told."""
        return replace(
            self.task,
            checkpoint=str(checkpoint),
            max_num_batched_tokens=self.peer_chunk,
            program=program,
        )

    @property
    def threads(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.task.num_threads), "HF_HUB_OFFLINE": "1"}


def launch_ours(plan: Plan, quantization: str | None = None) -> Launch:
    """Our engine, with weights as the plan says or otherwise."""
    task = replace(plan.task, quantization=quantization or plan.task.quantization)
    name = OURS if quantization is None else f"{OURS}:{quantization}"
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return Launch(name, sys.executable, "fabric_driver.py", task, paths)


def launch_peer(spec: str, plan: Plan) -> Launch:
    """A peer, or ``peer:variant``: a weight format of OpenVINO, a GGUF type of llama.cpp.

    Raises:
        ValueError: There is no such peer, or it has no such weights.
    """
    peer, _, variant = spec.partition(":")
    if peer == OURS and variant in QUANTIZATIONS:
        return launch_ours(plan, variant)
    if peer not in LAUNCHERS:
        raise ValueError(f"peer {spec!r} is none of {', '.join(PEERS)}")
    launch = LAUNCHERS[peer](plan, variant)
    if not Path(launch.python).is_file():
        raise ValueError(f"{launch.python} is missing; run tests/perf/peers/set_up.sh {peer}")
    return launch


def _openvino(plan: Plan, variant: str) -> Launch:
    formats = {"none": "fp32" if plan.task.dtype == "float32" else "fp16"}
    variant = variant or formats.get(plan.task.quantization, plan.task.quantization)
    folder = export_openvino(plan.model, variant, plan.peers_dir)
    task = plan.peer_task(folder)
    python = str(plan.peers_dir / "venvs/openvino/bin/python")
    return Launch(f"openvino:{variant}", python, "openvino_driver.py", task, plan.threads)


def _llamacpp(plan: Plan, variant: str) -> Launch:
    whole = "f32" if plan.task.dtype == "float32" else "bf16"
    variant = variant or {"none": whole, "int8": "q8_0", "int4": "q4_0"}[plan.task.quantization]
    path = export_gguf(plan.model, variant, plan.peers_dir)
    program = plan.peers_dir / "build-llama/bin/llama-server"
    task = plan.peer_task(path, str(program))
    name = f"llamacpp:{variant}"
    return Launch(name, sys.executable, "llamacpp_driver.py", task, plan.threads)


def _vllm(plan: Plan, variant: str) -> Launch:
    _refuse_quantized("vllm", variant or plan.task.quantization)
    venv = plan.peers_dir / "venvs/vllm"
    libraries = [*Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"), venv / "lib/libiomp5.so"]
    # It binds its own threads, and advises against OMP_NUM_THREADS.
    environment = {
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(str(path) for path in libraries if path.is_file()),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{plan.task.num_threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": str(-(-plan.task.kv_cache_bytes // GIB)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    task = plan.peer_task(export_folder(plan.model))
    return Launch("vllm", str(venv / "bin/python"), "vllm_driver.py", task, environment)


def _transformers(plan: Plan, variant: str) -> Launch:
    _refuse_quantized("transformers", variant or plan.task.quantization)
    python = plan.peers_dir / "venvs/base/bin/python"
    task = plan.peer_task(export_folder(plan.model))
    executable = str(python) if python.is_file() else sys.executable
    return Launch("transformers", executable, "transformers_driver.py", task, plan.threads)


def _refuse_quantized(peer: str, weights: str) -> None:
    if weights != "none":
        raise ValueError(f"{peer} is measured with whole weights only, not {weights}")


LAUNCHERS: dict[str, Callable[[Plan, str], Launch]] = {
    "openvino": _openvino,
    "vllm": _vllm,
    "llamacpp": _llamacpp,
    "transformers": _transformers,
}
