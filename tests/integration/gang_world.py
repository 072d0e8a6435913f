"""What tests of gangs share: engines over shards in processes or threads, and what they answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.core.clock import Clock
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.core.weights import WeightMove, WeightOrder
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.executor import ReadyExecutor
from fabric.engine.offline import Generated
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.kv.transfer import WorkerOrders
from fabric.models.sources import default_cache_dir
from fabric.scheduler.settings import SchedulerConfig
from tests.integration.gang_layouts import Layout, start_workers

PROMPTS = (
    "Once upon a time",
    "One day, a cat",
    "The big red ball",
    "She was sad because",
    "Tom and Sue went to the park. They saw a dog. The dog was very",
    "Mom said",
)
NUM_TOKENS = 64


def stories_settings(path: Path) -> EngineSettings:
    worker = WorkerSettings(
        models=(ModelSettings(model="stories", source=str(path), dtype="float32"),),
        cache_dir=default_cache_dir(),
        kv_cache_bytes=4 * 2**20,
        num_threads=1,
    )
    scheduler = SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=16)
    return EngineSettings(worker=worker, scheduler=scheduler)


def greedy(num_tokens: int = NUM_TOKENS) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)


def requests(
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams | None = None,
    model: str = "stories",
) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"r{i}", model, tuple(prompt), sampling or greedy())
        for i, prompt in enumerate(prompts)
    ]


def tokens(results: dict[str, Generated]) -> list[list[list[int]]]:
    """The tokens of each request's sequences."""
    return [
        [results[f"r{i}"].sequences[j].token_ids for j in sorted(results[f"r{i}"].sequences)]
        for i in range(len(results))
    ]


@dataclass(frozen=True)
class Gang:
    """Workers that are running; several engines may drive them, one after the other."""

    settings: EngineSettings
    executor: ReadyExecutor
    stop: Callable[[], None]

    def engine(
        self, clock: Clock | None = None, scheduler: SchedulerConfig | None = None
    ) -> BuiltEngine:
        """A new engine, which takes the workers as they were at first: without weights."""
        settings = replace(self.settings, scheduler=scheduler or self.settings.scheduler)
        places = range(len(self.executor.models))
        orders = tuple(WeightOrder(-1, place, WeightMove.EVICT) for place in places)
        self.executor.move(WorkerOrders(weights=orders))
        return build_engine(settings, clock=clock, gang=self.executor)


def start(settings: EngineSettings, layout: Layout) -> Gang:
    """Start a gang in processes of this host, or on threads of this one."""
    cut = layout.cut(settings)
    executor, stop = start_workers(cut, layout)
    return Gang(cut, executor, stop)
