"""The whole engine on a device: exactness on a small model, speed on one of Llama 3 8B's shape."""

import gc
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_bench import Bench, Found

from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.engine_timer import EngineTimer, Run, Workload
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.sources import default_cache_dir
from fabric.scheduler.settings import SchedulerConfig

SEED = 1
MAX_NUM_SEQS = 64
NUM_PROFILED = 30


@dataclass(frozen=True)
class ModelShape:
    """What a decoded token and a prompt cost, from the model's configuration."""

    num_layers: int
    hidden_size: int
    kv_width: int
    query_width: int
    vocab_size: int
    layer_weights: int

    @classmethod
    def of(cls, folder: Path) -> "ModelShape":
        raw = json.loads((folder / "config.json").read_text())
        hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
        kv_width = hidden // heads * raw["num_key_value_heads"]
        layer = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * raw["intermediate_size"]
        return cls(raw["num_hidden_layers"], hidden, kv_width, hidden, raw["vocab_size"], layer)

    def decode_bytes(self, context: int) -> int:
        """What must be read for a token, in bfloat16: weights but the embedding, and its KV."""
        weights = self.num_layers * self.layer_weights + self.vocab_size * self.hidden_size
        return 2 * (weights + context * self.num_layers * 2 * self.kv_width)

    def prefill_flop(self, length: int) -> int:
        """Multiplications and additions of a prompt whose last token is sampled."""
        linear = 2 * length * self.num_layers * self.layer_weights
        attention = 2 * length * length * self.num_layers * self.query_width
        return linear + attention + 2 * self.vocab_size * self.hidden_size


class Engines:
    """The engine that is loaded, for the sections that share it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.built: BuiltEngine | None = None

    @property
    def source(self) -> str:
        return "random:tiny" if self._bench.is_smoke else "random:llama-3-8b"

    def open(
        self,
        source: str,
        kv_bytes: int,
        *,
        dtype: str = "bfloat16",
        quantization: str = "none",
        cuda_graphs: bool = True,
        chunk: int = 4096,
    ) -> BuiltEngine:
        model = ModelSettings(model="bench", source=source, dtype=dtype, quantization=quantization)
        worker = WorkerSettings(
            models=(model,),
            cache_dir=default_cache_dir(),
            device=str(self._bench.device),
            kv_cache_bytes=kv_bytes,
            num_threads=1 if self._bench.is_smoke else None,
            cuda_graphs=cuda_graphs,
        )
        scheduler = SchedulerConfig(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=chunk)
        return build_engine(EngineSettings(worker=worker, scheduler=scheduler, prefix_cache=False))

    def need(self) -> BuiltEngine:
        if self.built is None:
            raise RuntimeError("the model is not loaded")
        return self.built

    def close(self) -> None:
        """Free the device for others."""
        if self.built is not None:
            self.built.engine.close()
        self.built = None
        gc.collect()
        if self._bench.is_cuda:
            torch.cuda.empty_cache()

    def check_exactness(self, bench: Bench, found: Found) -> None:
        """Greedy tokens alone, together, without recording, in chunks and preempted are equal."""
        workload = Workload.drawn(bench.size(24, 6), 3, 120, bench.size(40, 6), SEED)
        for dtype in ("float32", "bfloat16"):
            tokens = {
                "alone": self._tokens(dtype, workload, is_alone=True),
                "together": self._tokens(dtype, workload),
                "not recorded": self._tokens(dtype, workload, cuda_graphs=False),
                "in chunks": self._tokens(dtype, workload, chunk=64),
                "preempted": self._tokens(dtype, workload, kv_tokens=400),
            }
            for name, found_tokens in tokens.items():
                same = sum(a == b for a, b in zip(tokens["alone"], found_tokens, strict=True))
                found[f"{name} {dtype}"] = f"{same} of {len(found_tokens)} equal"
            if any(each != tokens["alone"] for each in tokens.values()):
                raise AssertionError(f"tokens differ in {dtype}")

    def _tokens(
        self,
        dtype: str,
        workload: Workload,
        *,
        is_alone: bool = False,
        cuda_graphs: bool = True,
        chunk: int = 4096,
        kv_tokens: int = 16384,
    ) -> list[tuple[int, ...]]:
        kv_bytes = kv_tokens * 2 * 2 * 32 * (4 if dtype == "float32" else 2)
        built = self.open(
            "random:tiny", kv_bytes, dtype=dtype, cuda_graphs=cuda_graphs, chunk=chunk
        )
        timer = EngineTimer(built, SEED)
        prompts = timer.prompts(workload)
        if is_alone:
            runs = [
                timer.run(Workload((len(prompt),), workload.num_tokens), [prompt])
                for prompt in prompts
            ]
        else:
            runs = [timer.run(workload, prompts)]
        built.engine.close()
        return [tokens for run in runs for tokens in run.token_ids]

    def load(self, bench: Bench, found: Found) -> None:
        """Draw the weights, and bring them to the device."""
        start_s = time.perf_counter()
        kv_bytes = bench.size(16 * 2**30, 2**22)
        self.built = self.open(self.source, kv_bytes)
        found["startup_s"] = time.perf_counter() - start_s
        found["num_parameters"] = self.built.served.card.num_parameters
        if bench.is_cuda:
            found["device_bytes"] = torch.cuda.memory_allocated()

    def measure_decode(self, bench: Bench, found: Found) -> None:
        """One stream, against what reading its bytes at copy bandwidth would take."""
        built = self.need()
        shape, timer = ModelShape.of(Path(built.served.card.tokenizer_path)), _timer(built)
        bandwidth = bench.ceiling("copy_bytes_per_s")
        for context in (bench.size(128, 8), bench.size(1024, 24)):
            run = _median(timer, Workload((context,), bench.size(96, 4)), bench.size(3, 1))
            found[f"tokens_per_s at {context}"] = 1 / run.decode_s
            roofline_s = shape.decode_bytes(context) / bandwidth
            found[f"of_roofline at {context}"] = roofline_s / run.decode_s
        found["roofline_tokens_per_s"] = 1 / roofline_s
        shares = [value for name, value in found.items() if name.startswith("of_roofline")]
        bench.meet("decode_of_bandwidth_roofline", min(shares))

    def measure_prefill(self, bench: Bench, found: Found) -> None:
        """One prompt in one iteration, against the matrix rate."""
        built = self.need()
        shape, timer = ModelShape.of(Path(built.served.card.tokenizer_path)), _timer(built)
        for length in (bench.size(512, 8), bench.size(4096, 32)):
            run = _median(timer, Workload((length,), 1), bench.size(3, 1))
            found[f"tokens_per_s of {length}"] = length / run.total_s
            rate = shape.prefill_flop(length) / run.total_s
            found[f"of_matrix_rate of {length}"] = rate / bench.ceiling("matrix_flop_per_s")
        bench.meet("prefill_4k_of_matrix_rate", rate / bench.ceiling("matrix_flop_per_s"))

    def measure_batch(self, bench: Bench, found: Found) -> None:
        """Many requests at once, as transformers gets them later."""
        timer, workload = _timer(self.need()), batch_workload(bench)
        found["prompt_tokens"] = sum(workload.prompt_lens)
        run = _median(timer, workload, bench.size(2, 1))
        found["generated_per_s"], found["total_s"] = run.generated_per_s, run.total_s
        short = _median(timer, Workload((16,) * MAX_NUM_SEQS, bench.size(64, 4)), bench.size(2, 1))
        found["step_ms of 64 decodes"] = short.decode_s * 1e3

    def measure_quantized(self, bench: Bench, found: Found) -> None:
        """One stream of a 1B model, whose weights are of each format; needs no other engine."""
        source = "random:tiny" if bench.is_smoke else "random:llama-3.2-1b"
        workload = Workload((bench.size(128, 8),), bench.size(96, 4))
        for quantization in ("none", "int8", "int4"):
            built = self.open(source, bench.size(2**30, 2**22), quantization=quantization)
            try:
                run = _median(_timer(built), workload, bench.size(3, 1))
            finally:
                built.engine.close()
            found[f"{quantization} tokens_per_s"] = 1 / run.decode_s

    def profile(self, bench: Bench, found: Found) -> None:
        """What a decoded token's time goes to, by torch's profiler: name, us a token, calls."""
        timer = _timer(self.need())
        timer.run(Workload((32,), 8))
        activities = [torch.profiler.ProfilerActivity.CPU]
        if bench.is_cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            timer.run(Workload((32,), 8))
        on_device = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda e: -float(getattr(e, on_device)))
        found["rows"] = [
            (event.key[:80], round(float(getattr(event, on_device)) / 8, 1), event.count)
            for event in events[:NUM_PROFILED]
        ]


def batch_workload(bench: Bench) -> Workload:
    """Prompts of 128 to 512 tokens, 128 more of each."""
    if bench.is_smoke:
        return Workload.drawn(3, 4, 12, 3, SEED)
    return Workload.drawn(MAX_NUM_SEQS, 128, 512, 128, SEED)


def _timer(built: BuiltEngine) -> EngineTimer:
    return EngineTimer(built, SEED)


def _median(timer: EngineTimer, workload: Workload, num_rounds: int) -> Run:
    """The middle of some runs, after one that compiles and records."""
    timer.run(workload)
    runs: Sequence[Run] = [timer.run(workload) for _ in range(num_rounds)]
    middle = statistics.median_low([run.total_s for run in runs])
    return next(run for run in runs if run.total_s == middle)
