"""Transformers' generate: prompts of a batch are padded to the longest."""

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from protocol import Task, Times, serve
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class FirstToken(BaseStreamer):
    """Notes when the first token after the prompt comes."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: Any) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        pass


class TransformersEngine:
    """The model as transformers has it."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.num_threads)
        torch.set_grad_enabled(False)
        dtype = getattr(torch, task.dtype)
        self._model = AutoModelForCausalLM.from_pretrained(task.checkpoint, dtype=dtype).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0
        self.facts: dict[str, object] = {"version": transformers.__version__}

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Times:
        streamer, start_s = FirstToken(), time.perf_counter()
        self._generate([list(prompt)], num_tokens, streamer)
        # What comes first is the prompt.
        return Times(streamer.times_s[1] - start_s, time.perf_counter() - start_s)

    def batch(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        start_s = time.perf_counter()
        self._generate([list(prompt) for prompt in prompts], num_tokens, None)
        return time.perf_counter() - start_s

    def _generate(
        self, prompts: list[list[int]], num_tokens: int, streamer: FirstToken | None
    ) -> None:
        length = max(len(prompt) for prompt in prompts)
        self._model.generate(
            input_ids=torch.tensor([[0] * (length - len(p)) + p for p in prompts]),
            attention_mask=torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts]),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            streamer=streamer,
        )


if __name__ == "__main__":
    serve(TransformersEngine)
