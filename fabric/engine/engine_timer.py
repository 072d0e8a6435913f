"""Times an engine that runs in this process: what one stream gets, prompts, and many together."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that all arrive at once: the length of each prompt, and tokens for each."""

    prompt_lens: tuple[int, ...]
    num_tokens: int

    @classmethod
    def drawn(
        cls, num_requests: int, shortest: int, longest: int, num_tokens: int, seed: int
    ) -> "Workload":
        """Prompts of any length between two."""
        rng = random.Random(seed)
        lengths = tuple(rng.randint(shortest, longest) for _ in range(num_requests))
        return cls(lengths, num_tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.prompt_lens) + self.num_tokens


@dataclass(frozen=True, slots=True)
class Run:
    """How long a workload took: to the first token of all, and in whole; and what came of it."""

    workload: Workload
    first_s: float
    total_s: float
    token_ids: tuple[tuple[int, ...], ...]

    @property
    def decode_s(self) -> float:
        """Seconds of a decoded token, where there is one request."""
        return (self.total_s - self.first_s) / (self.workload.num_tokens - 1)

    @property
    def generated_per_s(self) -> float:
        """Tokens generated in a second, prompts included in the time."""
        return len(self.workload.prompt_lens) * self.workload.num_tokens / self.total_s


class EngineTimer:
    """Runs workloads of random prompts greedily through an engine, each to its length."""

    def __init__(self, built: BuiltEngine, seed: int = 0) -> None:
        self._engine = built.engine
        self._card = built.served.card
        self._rng = random.Random(seed)
        self._num_requests = 0

    @property
    def max_model_len(self) -> int:
        """The longest sequence that fits."""
        return self._card.max_model_len

    def prompts(self, workload: Workload) -> list[list[int]]:
        """New random prompts, of tokens that are not the first, which are often special."""
        vocab_size = self._card.vocab_size
        return [
            [self._rng.randrange(min(10, vocab_size - 1), vocab_size) for _ in range(length)]
            for length in workload.prompt_lens
        ]

    def run(self, workload: Workload, prompts: Sequence[Sequence[int]] | None = None) -> Run:
        """Run a workload to its end, with prompts of its own unless there are some.

        Raises:
            InvalidRequest: It doesn't fit the model.
            FabricError: A request failed.
        """
        sampling = SamplingParams(max_tokens=workload.num_tokens, temperature=0.0, ignore_eos=True)
        names = [f"timed-{self._num_requests + i}" for i in range(len(workload.prompt_lens))]
        self._num_requests += len(names)
        requests = [
            GenerationRequest(name, self._card.model, tuple(prompt), sampling)
            for name, prompt in zip(names, prompts or self.prompts(workload), strict=True)
        ]
        tokens: dict[str, list[int]] = {name: [] for name in names}
        first_s, start_s = 0.0, time.perf_counter()
        try:
            for request in requests:
                self._engine.add(request)
            while self._engine.has_work:
                for output in self._engine.step():
                    if output.error is not None:
                        raise output.error
                    for delta in output.deltas:
                        tokens[output.request_id].extend(delta.token_ids)
                    first_s = first_s or time.perf_counter() - start_s
        except BaseException:
            # Who goes on after that, as when a run takes too long, finds the engine idle.
            self._drop(names)
            raise
        total_s = time.perf_counter() - start_s
        return Run(workload, first_s, total_s, tuple(tuple(tokens[name]) for name in names))

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            self._engine.cancel(name)
        while self._engine.has_work:
            self._engine.step()
