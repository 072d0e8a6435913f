"""Plans of two models, and streams of both while plans are applied."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Self

import yaml

from fabric.client import AsyncClient, RequestError
from tests.e2e.live_fabric import PROMPTS as ALL_PROMPTS

DTYPES = {"a": "float32", "b": "bfloat16"}
NUM_TOKENS = 300
PROMPTS = ALL_PROMPTS[::4]


def group(name: str, *models: str) -> dict[str, object]:
    return {
        "name": name,
        "models": list(models),
        "max_num_seqs": 8,
        "kv_cache": "4MB",
        "num_threads": 1,
        "num_cpus": 0.5,
    }


@dataclass
class Plans:
    """Plans of two models that differ in more than their names."""

    source: str

    def plan(self, *groups: dict[str, object], source: str = "") -> dict[str, object]:
        ids = sorted({model for group in groups for model in group["models"]})  # type: ignore[attr-defined]
        models = [
            {"id": name, "source": source or self.source, "dtype": DTYPES.get(name, "float32")}
            for name in ids
        ]
        return {"models": models, "groups": list(groups)}

    @property
    def together(self) -> str:
        return yaml.safe_dump(self.plan(group("g0", "a", "b")))

    @property
    def apart(self) -> str:
        return yaml.safe_dump(self.plan(group("g0", "a"), group("g1", "b")))

    @property
    def broken(self) -> str:
        return yaml.safe_dump(self.plan(group("g1", "a", "b"), source="/nowhere"))

    @property
    def other_model(self) -> str:
        return yaml.safe_dump(self.plan(group("g2", "a", "c")))


@dataclass
class Load:
    """Streams of both models all the time: two of each, one after the other."""

    client: AsyncClient
    expected: dict[str, dict[str, list]]
    num_streams: int = 0
    failures: list[RequestError] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._is_over = False
        self._tasks = [
            asyncio.create_task(self._stream(model, offset))
            for model in DTYPES
            for offset in (0, 2)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _stream(self, model: str, offset: int) -> None:
        for prompt in itertools.islice(itertools.cycle(PROMPTS), offset, None):
            if self._is_over:
                return
            stream = self.client.stream(
                model, prompt, max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True
            )
            try:
                generation = await stream.collect()
            except RequestError as error:
                self.failures.append(error)
                continue
            self.num_streams += 1
            assert list(generation.sequences[0].token_ids) == self.expected[model][prompt]

    async def go_on(self) -> None:
        """Wait until streams that begin now have ended."""
        goal = self.num_streams + 2 * len(self._tasks)
        while self.num_streams < goal:
            assert not self.failures, self.failures
            await asyncio.sleep(0.01)
