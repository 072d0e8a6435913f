"""Our engine on LocalExecutor, without sockets."""

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Literal, cast

from paired_reads import PairedReads
from protocol import Task, Times, serve

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.core.weights import Quantization
from fabric.engine.build import build_engine, open_local
from fabric.engine.offline import generate
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.sources import default_cache_dir
from fabric.scheduler.settings import SchedulerConfig


class FabricEngine:
    """Our engine; ``outside_s`` is the time of steps that its executor did not take."""

    def __init__(self, task: Task) -> None:
        self._task = task
        settings = _settings(task)
        executor: Any = open_local(settings.worker)
        self._executor_s = 0.0
        executor.submit = self._timed(executor.submit)
        executor.collect = self._timed(executor.collect)
        self._engine = build_engine(settings, gang=executor).engine
        self._numbers = count()
        memory = executor.memory
        self.facts: dict[str, object] = {
            "weight_bytes": sum(model.weight_bytes for model in executor.models),
            "kv_pool_bytes": memory.max_kv_slabs * memory.slab_bytes,
        }

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Times:
        self._engine.add(self._request(prompt, num_tokens))
        first_s, self._executor_s, start_s = 0.0, 0.0, time.perf_counter()
        while self._engine.has_work:
            outputs = self._engine.step()
            if not first_s and any(output.deltas for output in outputs):
                first_s, self._executor_s = time.perf_counter() - start_s, 0.0
        total_s = time.perf_counter() - start_s
        return Times(first_s, total_s, {"outside_s": total_s - first_s - self._executor_s})

    def paired_stream(self, prompt: Sequence[int], num_tokens: int, pattern: str) -> Times:
        reads = PairedReads(self._task.reader, pattern, self._task.num_threads)
        self._engine.add(self._request(prompt, num_tokens))
        first_s, steps_s = 0.0, 0.0
        while self._engine.has_work:
            start_s = time.perf_counter()
            outputs = self._engine.step()
            took_s = time.perf_counter() - start_s
            if first_s:
                steps_s += took_s
                reads.read()
            elif any(output.deltas for output in outputs):
                first_s = took_s
        return Times(first_s, first_s + steps_s, {"read_bytes_per_s": reads.bytes_per_s})

    def batch(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        requests = [self._request(prompt, num_tokens) for prompt in prompts]
        start_s = time.perf_counter()
        generate(self._engine, requests)
        return time.perf_counter() - start_s

    def _request(self, prompt: Sequence[int], num_tokens: int) -> GenerationRequest:
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        return GenerationRequest(f"r{next(self._numbers)}", "model", tuple(prompt), sampling)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start_s = time.perf_counter()
            result = call(*arguments)
            self._executor_s += time.perf_counter() - start_s
            return result

        return timed


def _settings(task: Task) -> EngineSettings:
    model = ModelSettings(
        model="model",
        source=task.checkpoint,
        dtype=cast(Literal["bfloat16", "float32"], task.dtype),
        max_model_len=task.max_model_len,
        quantization=cast(Quantization, task.quantization),
    )
    worker = WorkerSettings(
        models=(model,),
        cache_dir=default_cache_dir(),
        num_threads=task.num_threads,
        kv_cache_bytes=task.kv_cache_bytes,
    )
    scheduler = SchedulerConfig(
        max_num_seqs=task.max_num_seqs,
        max_num_batched_tokens=task.max_num_batched_tokens,
        max_model_len=task.max_model_len,
    )
    return EngineSettings(worker=worker, scheduler=scheduler, prefix_cache=False)


if __name__ == "__main__":
    serve(FabricEngine)
