"""Models that share one engine say what each says alone, however their weights come and go."""

import itertools
import queue
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.clock import Clock, MonotonicClock, VirtualClock
from fabric.core.errors import Unavailable
from fabric.core.request import GenerationRequest, LoadReport, RequestOutput
from fabric.core.weights import WeightState
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.engine_loop import EngineLoop
from fabric.engine.offline import Generated, generate
from fabric.engine.settings import EngineSettings, ParkingSettings
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.policies import PolicyConfig, PolicyName
from fabric.scheduler.settings import ResidencyConfig, SchedulerConfig
from tests.integration.driven_models import settings_of, small_model
from tests.integration.gang_layouts import Layout, start_workers
from tests.integration.gang_world import greedy
from tests.integration.test_engine_exactness import STORIES_PROMPTS
from tests.integration.test_engine_swapping import swap_at_every_step

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NUM_TOKENS = 32
NUM_SWAPPED = 8
TIMEOUT_S = 20.0
HOST_BYTES = 8 * 2**20
# Weights of two of the three larger models and of the small one, and a little for KV.
TWO_OF_THREE = 48 * 2**16

Models = Mapping[str, Path]
Tokens = dict[str, list[int]]


@pytest.fixture(scope="module")
def models(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """stories260K three times, and a model of other sizes."""
    small = small_model(tmp_path_factory.mktemp("small"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stories_path / name, small)
    return {"s0": stories_path, "s1": stories_path, "small": small, "s2": stories_path}


@pytest.fixture(scope="module")
def wanted(stories_path: Path, models: Models) -> list[GenerationRequest]:
    """Requests for all models by turns, each with a prompt of its own."""
    tokenizer = Tokenizer.load(stories_path)
    prompts = [tokenizer.encode(prompt) for prompt in STORIES_PROMPTS]
    return [
        GenerationRequest(
            f"{model}-{i}",
            model,
            # Its vocabulary is not that of the others.
            tuple(token % 90 for token in prompt) if model == "small" else tuple(prompt),
            greedy(NUM_TOKENS),
        )
        for i, (model, prompt) in enumerate(zip(itertools.cycle(models), prompts, strict=False))
    ]


@pytest.fixture(scope="module")
def alone(
    models: Models, wanted: list[GenerationRequest], tmp_path_factory: pytest.TempPathFactory
) -> Tokens:
    """What each request gets of an engine that has its model only, one after the other."""
    found = {}
    for name, path in models.items():
        settings = settings_of({name: path}, tmp_path_factory.mktemp("alone"), slab_bytes=None)
        built = build_engine(settings)
        for request in wanted:
            if request.model == name:
                found.update(tokens(generate(built.engine, [request])))
        built.engine.close()
    return found


def tokens(results: Mapping[str, Generated]) -> Tokens:
    return {name: result.sequences[0].token_ids for name, result in results.items()}


def expected(requests: Iterable[GenerationRequest], alone: Tokens) -> Tokens:
    return {request.request_id: alone[request.request_id] for request in requests}


def sharing(
    models: Models, folder: Path, policy: PolicyName = "fcfs", **worker: object
) -> EngineSettings:
    """Settings of an engine of several models, with room for all images in host memory."""
    settings = settings_of(models, folder, host_weight_bytes=HOST_BYTES, **worker)
    residency = ResidencyConfig(host_bytes=HOST_BYTES)
    scheduler = SchedulerConfig(
        max_num_seqs=8, policy=PolicyConfig(name=policy), residency=residency
    )
    return replace(settings, scheduler=scheduler)


@contextmanager
def engine_of(settings: EngineSettings, clock: Clock | None = None) -> Iterator[BuiltEngine]:
    """An engine that must have leaked nothing when the test is done with it."""
    built = build_engine(settings, clock=clock)
    try:
        yield built
        check_memory(built.scheduler.report())
    finally:
        built.engine.close()
    folder = settings.worker.host_weight_dir
    assert folder is not None
    assert not list(folder.glob("*.weights"))


def check_memory(report: LoadReport) -> None:
    """All slabs are free, or have weights, or nothing but cached prefixes."""
    weights = sum(
        -(-model.weight_bytes // report.slab_bytes)
        for model in report.models
        if model.state is WeightState.RESIDENT
    )
    idle = sum(model.num_idle_slabs for model in report.models)
    assert all(model.num_slabs == model.num_idle_slabs for model in report.models)
    assert report.num_free_slabs + weights + idle == report.num_slabs
    assert report.num_free_blocks == report.num_blocks
    assert (report.num_host_blocks, report.num_disk_blocks) == (0, 0)


def num_loads(built: BuiltEngine) -> int:
    return sum(model.num_loads for model in built.scheduler.report().models)


def test_requests_of_all_models_at_once_get_the_tokens_of_each_model_alone(
    models: Models, wanted: list[GenerationRequest], alone: Tokens, tmp_path: Path
) -> None:
    with engine_of(sharing(models, tmp_path)) as built:
        assert tokens(generate(built.engine, wanted)) == alone
        assert num_loads(built) == len(models)


@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "srw"])
def test_models_that_take_turns_on_a_device_for_two_get_the_same_tokens(
    models: Models,
    wanted: list[GenerationRequest],
    alone: Tokens,
    tmp_path: Path,
    policy: PolicyName,
) -> None:
    with engine_of(sharing(models, tmp_path, policy, memory_bytes=TWO_OF_THREE)) as built:
        before = num_loads(built)
        assert tokens(generate(built.engine, wanted)) == alone
        assert num_loads(built) > before


def test_swapping_all_kv_at_every_step_while_weights_come_and_go_changes_no_token(
    models: Models, wanted: list[GenerationRequest], alone: Tokens, tmp_path: Path
) -> None:
    parking = ParkingSettings(host_bytes=16 * 2**20, debug=True)
    settings = sharing(models, tmp_path, memory_bytes=TWO_OF_THREE, parking=parking)
    settings = replace(settings, scheduler=replace(settings.scheduler, preemption="swap"))
    wishes = itertools.cycle(itertools.product(models, (WeightState.COLD, WeightState.HOST)))
    with engine_of(settings) as built:
        results = swap_at_every_step(
            built,
            wanted[:NUM_SWAPPED],
            after_step=lambda: built.engine.set_residence(*next(wishes), pinned=None),
        )
        assert tokens(results) == expected(wanted[:NUM_SWAPPED], alone)
        report = built.scheduler.report()
        assert report.swapped_in_bytes > 0
        assert (report.num_recomputed_tokens, report.num_failed_transfers) == (0, 0)
        assert all(model.num_loads > 1 for model in report.models)


@pytest.mark.dist
def test_batches_of_two_models_are_in_a_pipeline_together_and_change_no_token(
    models: Models,
    wanted: list[GenerationRequest],
    alone: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = {name: models[name] for name in ("s0", "small")}
    layout = Layout(2, 1)
    settings = layout.cut(sharing(two, tmp_path))
    executor, stop = start_workers(settings, layout)
    try:
        built = build_engine(settings, gang=executor)
        collect, flying = executor.collect, []

        def watched() -> object:
            flying.append([output.model for output in built.engine._in_flight])
            return collect()

        monkeypatch.setattr(executor, "collect", watched)
        requests = [request for request in wanted if request.model in two]
        assert tokens(generate(built.engine, requests)) == expected(requests, alone)
        assert [0, 1] in flying
        assert [1, 0] in flying
        check_memory(built.scheduler.report())
    finally:
        stop()


class RunningLoop:
    """An engine on its thread, and what it has published."""

    def __init__(self, built: BuiltEngine) -> None:
        served = tuple(model.served for model in built.models)
        self.loop = EngineLoop(built.engine, served, MonotonicClock())
        self._outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        self.results: dict[str, Generated] = {}
        self.loop.start(lambda outputs: [self._outputs.put(output) for output in outputs])

    def submit(self, requests: Iterable[GenerationRequest]) -> None:
        for request in requests:
            self.results[request.request_id] = Generated()
            self.loop.submit(request)

    def take_until(self, is_enough: Callable[[RequestOutput], bool]) -> None:
        while True:
            output = self._outputs.get(timeout=TIMEOUT_S)
            self.results[output.request_id].append(output)
            if is_enough(output):
                return

    def finish(self) -> None:
        self.take_until(lambda _: all(each.usage for each in self.results.values()))


def test_weights_taken_away_by_hand_drain_and_nothing_is_lost(
    models: Models, wanted: list[GenerationRequest], alone: Tokens, tmp_path: Path
) -> None:
    settings = sharing(models, tmp_path)
    settings = replace(settings, scheduler=replace(settings.scheduler, max_num_seqs=2))
    with engine_of(settings) as built:
        running = RunningLoop(built)
        running.submit(wanted)
        running.take_until(lambda output: output.request_id.startswith("s0"))
        # Some of its requests run and others wait, which wake it again.
        load = running.loop.set_residence("s0", WeightState.COLD, None).result(TIMEOUT_S)
        assert (load.state, load.num_running > 0) == (WeightState.RESIDENT, True)
        assert load.num_waiting > 0
        running.finish()
        running.loop.stop()
        assert tokens(running.results) == alone
        counts = {model.model: model.num_loads for model in built.scheduler.report().models}
        assert counts == dict.fromkeys(models, 1) | {"s0": 2}


def test_a_model_whose_files_are_gone_fails_alone_and_works_again_when_they_are_back(
    models: Models,
    wanted: list[GenerationRequest],
    alone: Tokens,
    stories_path: Path,
    tmp_path: Path,
) -> None:
    folder, away = tmp_path / "model", tmp_path / "away"
    shutil.copytree(stories_path, folder)
    folder.chmod(0o700)
    two, clock = {"s0": folder, "s1": stories_path}, VirtualClock()
    gone, rest = ([r for r in wanted if r.model == name] for name in two)
    with engine_of(sharing(two, tmp_path), clock) as built:
        built.engine.set_residence("s0", WeightState.COLD, None)
        built.engine.step()
        folder.rename(away)
        results = generate(built.engine, gone + rest)
        assert tokens({r.request_id: results[r.request_id] for r in rest}) == expected(rest, alone)
        pauses_s = []
        for request in gone:
            error = results[request.request_id].error
            assert isinstance(error, Unavailable)
            assert "could not be loaded" in error.message
            assert str(tmp_path) not in error.message
            pauses_s.append(error.retry_after_s or 0.0)
        assert min(pauses_s) > 0.0
        problems = {model.model: model.problem for model in built.scheduler.report().models}
        assert (str(folder) in problems["s0"], problems["s1"]) == (True, "")
        away.rename(folder)
        clock.advance(max(pauses_s))
        results = generate(built.engine, gone + rest)
        assert tokens(results) == expected(gone + rest, alone)
        assert not any(model.problem for model in built.scheduler.report().models)
