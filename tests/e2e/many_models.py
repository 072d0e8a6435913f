"""What tests of several models share: configurations, what each model says alone, streams."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import yaml

from fabric.client import (
    AsyncClient,
    Generation,
    LoadReport,
    RequestError,
    RetryPolicy,
    WeightState,
)
from fabric.config import parse_config
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.host_weights import SHARED_MEMORY
from fabric.engine.offline import generate

# Model and prompt.
Asked = tuple[str, str]
Expected = Mapping[Asked, list[int]]
Section = dict[str, object]

SETTLED_S = 10.0


@dataclass(frozen=True)
class Served:
    """A running `fabric serve`."""

    target: str
    pid: int


@dataclass(frozen=True)
class World:
    """Models by their ids, and where a fabric of them keeps what."""

    models: Mapping[str, Section]
    folder: Path
    images: Path

    def config(self, *groups: Section) -> Section:
        """A configuration of these groups and the models that they host."""
        common = {
            "max_num_seqs": 16,
            "num_threads": 1,
            "num_cpus": 0.5,
            "swap": {"host": "64MB"},
            "weights": {"host": "3GB", "dir": str(self.images)},
        }
        hosted = {model for group in groups for model in model_ids(group)}
        return {
            "models": [{"id": name, **self.models[name]} for name in sorted(hosted)],
            "groups": [{**common, **group} for group in groups],
            "router": {"port": 0},
            "cache_dir": str(self.folder),
        }

    def write(self, *groups: Section) -> Path:
        """The configuration as a file."""
        path = self.folder / "fabric.yaml"
        path.write_text(yaml.safe_dump(self.config(*groups)))
        return path

    def alone(self, model: str) -> BuiltEngine:
        """An engine of one of the models, which has only its weights to keep in host memory."""
        group = {"name": "alone", "models": [model], "kv_cache": "32MB", "swap": {"mode": "off"}}
        config = parse_config(self.config(group), "test")
        return build_engine(config.engine_settings(config.groups[0]))


def model_ids(group: Section) -> list[str]:
    models: Sequence[object] = group["models"]  # type: ignore[assignment]
    return [model["id"] if isinstance(model, dict) else str(model) for model in models]


@contextmanager
def image_folder() -> Iterator[Path]:
    """A folder in shared memory for weights; what processes that were killed leave goes, too."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def said_alone(world: World, asked: Mapping[Asked, int]) -> Iterator[Expected]:
    """What engines of one model each make of prompts, one at a time, in so many tokens.

    The engines stay, without anything on the device, so that fabrics find the weights in host
    memory: converting them takes longer than all else.
    """
    engines = {}
    expected = {}
    for model in dict.fromkeys(model for model, _ in asked):
        built = engines[model] = world.alone(model)
        for (name, prompt), num_tokens in asked.items():
            if name == model:
                expected[name, prompt] = _tokens(built, model, prompt, num_tokens)
        built.engine.set_residence(model, WeightState.HOST, None)
        built.engine.step()
    try:
        yield expected
    finally:
        for built in engines.values():
            built.engine.close()


def _tokens(built: BuiltEngine, model: str, prompt: str, num_tokens: int) -> list[int]:
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    request = GenerationRequest(prompt, model, tuple(built.tokenizer.encode(prompt)), sampling)
    return generate(built.engine, [request])[prompt].sequences[0].token_ids


async def ask(client: AsyncClient, model: str, prompt: str, num_tokens: int) -> Generation:
    """The whole greedy answer, as a stream."""
    options = {"max_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}
    return await client.stream(model, prompt, **options).collect()  # type: ignore[arg-type]


async def ask_all(client: AsyncClient, expected: Expected) -> list[Generation]:
    """All at once; each answer must be what the model says alone."""
    answers = await asyncio.gather(
        *(ask(client, *asked, len(tokens)) for asked, tokens in expected.items())
    )
    found = [list(answer.sequences[0].token_ids) for answer in answers]
    assert dict(zip(expected, found, strict=True)) == expected
    return answers


@dataclass
class Streams:
    """Streams of all models that go on, for each model one after the other."""

    models: frozenset[str]
    num_done: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, RequestError]] = field(default_factory=list)

    async def more(self) -> None:
        """Wait until a stream of each model that begins from now on has ended."""
        goal = {model: self.num_done[model] + 2 for model in self.models}
        while any(self.num_done[model] < number for model, number in goal.items()):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def streaming(target: str, expected: Expected) -> AsyncIterator[Streams]:
    """Keep a stream of each model going; their tokens must be right, and nothing is tried twice."""
    streams = Streams(frozenset(model for model, _ in expected))
    is_over = asyncio.Event()

    async def go_on(model: str, client: AsyncClient) -> None:
        for name, prompt in cycle(asked for asked in expected if asked[0] == model):
            if is_over.is_set():
                return
            tokens = expected[name, prompt]
            try:
                answer = await ask(client, name, prompt, len(tokens))
            except RequestError as error:
                streams.failures.append((model, error))
                await asyncio.sleep(error.retry_after_s or 0.0)
                continue
            assert list(answer.sequences[0].token_ids) == tokens
            streams.num_done[model] += 1

    async with (
        AsyncClient(target, retry=RetryPolicy(max_attempts=1)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for model in streams.models:
            tasks.create_task(go_on(model, client))
        try:
            yield streams
        finally:
            is_over.set()


async def check_memory(client: AsyncClient) -> None:
    """Wait until nothing is in flight, and nothing is held but weights and cached prefixes."""
    deadline = time.monotonic() + SETTLED_S
    while True:
        status = await client.status()
        loads = [group.load for group in status.groups]
        if not status.num_inflight and not any(map(_is_holding, loads)):
            return
        assert time.monotonic() < deadline, status
        await asyncio.sleep(0.05)


def _is_holding(load: LoadReport) -> bool:
    weights = sum(
        -(-model.weight_bytes // load.slab_bytes)
        for model in load.models
        if model.state is WeightState.RESIDENT
    )
    idle = sum(model.num_idle_slabs for model in load.models)
    num_missing = (
        load.num_slabs - load.num_free_slabs - weights - idle,
        load.num_blocks - load.num_free_blocks,
        load.num_host_blocks,
        load.num_disk_blocks,
    )
    return any(num_missing) or load.num_running + load.num_waiting > 0
