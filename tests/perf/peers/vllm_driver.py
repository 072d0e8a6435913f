"""vLLM's engine for processors, stepped from here as its own offline class steps it."""

import time
from collections.abc import Sequence
from itertools import count

import vllm
from protocol import Task, Times, serve
from vllm import LLM, SamplingParams


class VllmEngine:
    """The engine with prefix caching off; its KV space is told by the environment."""

    def __init__(self, task: Task) -> None:
        self._llm = LLM(
            task.checkpoint,
            dtype=task.dtype,
            max_model_len=task.max_model_len,
            max_num_seqs=task.max_num_seqs,
            max_num_batched_tokens=task.max_num_batched_tokens or None,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._numbers = count()
        config = self._llm.llm_engine.vllm_config.scheduler_config
        self.facts: dict[str, object] = {
            "version": vllm.__version__,
            "max_num_batched_tokens": config.max_num_batched_tokens,
        }

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Times:
        engine, first_s, start_s = self._llm.llm_engine, 0.0, time.perf_counter()
        engine.add_request(
            str(next(self._numbers)), {"prompt_token_ids": list(prompt)}, _sampling(num_tokens)
        )
        while engine.has_unfinished_requests():
            if engine.step() and not first_s:
                first_s = time.perf_counter() - start_s
        return Times(first_s, time.perf_counter() - start_s)

    def batch(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        start_s = time.perf_counter()
        results = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            _sampling(num_tokens),
            use_tqdm=False,
        )
        assert all(len(result.outputs[0].token_ids) == num_tokens for result in results)
        return time.perf_counter() - start_s


def _sampling(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


if __name__ == "__main__":
    serve(VllmEngine)
