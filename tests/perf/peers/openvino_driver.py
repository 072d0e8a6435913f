"""OpenVINO GenAI's ContinuousBatchingPipeline on its own intermediate representation."""

import time
from collections.abc import Sequence
from itertools import count

import numpy as np
import openvino
import openvino_genai
from protocol import Task, Times, serve

GIB = 2**30


class OpenVinoEngine:
    """The pipeline with prefix caching off; the KV cache is whole gibibytes."""

    def __init__(self, task: Task) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = -(-task.kv_cache_bytes // GIB)
        scheduler.max_num_seqs = task.max_num_seqs
        if task.max_num_batched_tokens:
            scheduler.max_num_batched_tokens = task.max_num_batched_tokens
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        properties: dict[str, object] = {"INFERENCE_NUM_THREADS": task.num_threads}
        if task.dtype == "float32":
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            task.checkpoint, scheduler, "CPU", properties
        )
        self._numbers = count()
        self.facts: dict[str, object] = {
            "version": openvino_genai.__version__,
            "kv_pool_bytes": scheduler.cache_size * GIB,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        }

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Times:
        start_s = time.perf_counter()
        handle = self._pipeline.add_request(next(self._numbers), _ids(prompt), _config(num_tokens))
        first_s = 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if not first_s and handle.can_read():
                first_s = time.perf_counter() - start_s
        return Times(first_s, time.perf_counter() - start_s)

    def batch(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        start_s = time.perf_counter()
        configs = [_config(num_tokens)] * len(prompts)
        results = self._pipeline.generate([_ids(prompt) for prompt in prompts], configs)
        assert all(len(result.m_generation_ids[0]) == num_tokens for result in results)
        return time.perf_counter() - start_s


def _ids(prompt: Sequence[int]) -> openvino.Tensor:
    return openvino.Tensor(np.array([prompt], dtype=np.int64))


def _config(num_tokens: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = num_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    return config


if __name__ == "__main__":
    serve(OpenVinoEngine)
