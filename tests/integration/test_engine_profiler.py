"""Profiles are measured through the executor, leave no trace, and are kept."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.cli import main
from fabric.core.errors import ConfigError
from fabric.core.profile import Profile
from fabric.core.weights import WeightMove
from fabric.engine.build import build_engine, open_local
from fabric.engine.copy_timer import measure_copies
from fabric.engine.local_executor import LocalExecutor
from fabric.engine.offline import generate
from fabric.engine.preparation import load_weights
from fabric.engine.profile_store import find_profile, read_profile, write_profile
from fabric.engine.profiler import FULL, QUICK, measure_profile
from fabric.engine.settings import EngineSettings, ParkingSettings, WorkerSettings
from fabric.engine.worker import Worker
from fabric.kv.transfer import Transfer, WorkerOrders
from fabric.scheduler.output import SchedulerOutput
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.settings import SchedulerConfig
from tests.integration.driven_models import Driver, settings_of, small_model
from tests.integration.gang_world import Layout, requests, start, stories_settings, tokens

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STORIES = 0
MLFQ = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, policy=PolicyConfig(name="mlfq"))


@pytest.fixture
def settings(stories_path: Path, tmp_path: Path) -> EngineSettings:
    """stories260K under a policy that needs a profile, with host memory to park blocks in."""
    settings = stories_settings(stories_path)
    parking = ParkingSettings(host_bytes=2**20)
    worker = replace(settings.worker, cache_dir=tmp_path, parking=parking)
    return replace(settings, worker=worker, scheduler=MLFQ)


class WatchedExecutor(LocalExecutor):
    """Notes what it was asked for."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(Worker(settings))
        self.outputs: list[SchedulerOutput] = []
        self.transfers: list[Transfer] = []
        self.punched: tuple[int, ...] = ()

    def submit(self, output: SchedulerOutput) -> None:
        self.outputs.append(output)
        super().submit(output)

    def move(self, orders: WorkerOrders) -> None:
        self.transfers += [transfer for blocks in orders.blocks for transfer in blocks.transfers]
        self.punched = orders.punched
        super().move(orders)


@pytest.fixture
def executor(settings: EngineSettings):
    executor = WatchedExecutor(settings.worker)
    load_weights(executor, STORIES)
    yield executor
    executor.close()


def loaded(settings: WorkerSettings) -> LocalExecutor:
    executor = open_local(settings)
    load_weights(executor, STORIES)
    return executor


def naming(settings: EngineSettings, profile: Path) -> EngineSettings:
    """The settings of an engine whose model has its profile in a file."""
    (model,) = settings.worker.models
    worker = replace(settings.worker, models=(replace(model, profile=profile),))
    return replace(settings, worker=worker)


def sizes(profile: Profile) -> tuple[list[int], list[tuple[int, int]]]:
    return [n for n, _ in profile.prefill], [(n, context) for n, context, _ in profile.decode]


def test_a_full_profile_covers_what_fits(settings, executor):
    profile = measure_profile(settings, executor, STORIES, FULL)
    prompts, decodes = sizes(profile)
    assert prompts == [1, 4, 16, 32, 64, 128, 256, 512]
    assert decodes == [(n, c) for n in (1, 2, 4, 8) for c in (32, 128, 512)]
    assert {(copy.tier, copy.direction) for copy in profile.copies} == {
        ("host", "out"),
        ("host", "in"),
    }
    assert profile.block_bytes == executor.models[STORIES].space.block_bytes
    assert profile.copy_s("host", "out", profile.block_bytes) < 1.0


def test_more_tokens_take_longer(settings, executor):
    profile = measure_profile(settings, executor, STORIES, FULL)
    assert profile.prefill_s(512) > 4 * profile.prefill_s(16)
    assert profile.min_iteration_s < profile.prefill_s(512)


def test_workers_forget_what_they_were_profiled_with(settings, executor):
    measure_profile(settings, executor, STORIES, QUICK)
    known = {new.key for output in executor.outputs for new in output.new_sequences}
    released = [key for output in executor.outputs for key in output.released]
    assert known <= set(released)
    assert len(released) == sum(len(output.new_sequences) for output in executor.outputs)
    assert max(transfer.number for transfer in executor.transfers) < 0


def test_blocks_that_are_written_belong_to_one_sequence(settings, executor):
    measure_profile(settings, executor, STORIES, FULL)
    for output in executor.outputs:
        last_blocks = [new.block_ids[-1] for new in output.new_sequences]
        assert len(set(last_blocks)) == len(last_blocks)
        for new in output.new_sequences:
            assert len(set(new.block_ids)) == len(new.block_ids)
            assert set(new.block_ids) <= set(range(executor.memory.max_num_blocks(STORIES)))


def test_kv_that_is_read_has_been_written_before(settings, executor):
    """Systems give one page of zeros, which stays in the caches, for all that was never written."""
    measure_profile(settings, executor, STORIES, FULL)
    written = {0}
    for output in executor.outputs:
        written |= {target for _, target in output.copies}
        assert {block for new in output.new_sequences for block in new.block_ids} <= written


def test_memory_that_a_profile_took_goes_back_to_the_system(settings, executor):
    measure_profile(settings, executor, STORIES, QUICK)
    assert executor.punched == tuple(range(executor.memory.num_slabs))


def test_a_slow_link_is_measured_as_slow_and_soon(settings):
    parking = ParkingSettings(host_bytes=2**20, max_bytes_per_s=4 * 2**20, delay_s=0.01)
    executor = loaded(replace(settings.worker, parking=parking))
    begin_s = time.perf_counter()
    copies = measure_copies(
        executor, STORIES, executor.memory.max_num_blocks(STORIES), QUICK.copies
    )
    assert time.perf_counter() - begin_s < 5.0
    for copy in copies:
        assert copy.bytes_per_s == pytest.approx(4 * 2**20, rel=0.5)
        assert copy.latency_s > 0.005
    executor.close()


@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_little_memory_is_enough(settings, num_blocks):
    block_bytes = 2**20 // 50
    worker = replace(settings.worker, kv_cache_bytes=num_blocks * block_bytes + block_bytes // 2)
    executor = loaded(worker)
    profile = measure_profile(settings, executor, STORIES, QUICK)
    assert executor.memory.max_num_blocks(STORIES) == num_blocks
    assert profile.prefill[-1][0] == num_blocks * settings.worker.block_size
    executor.close()


def test_tokens_after_profiling_are_those_without_it(settings):
    plain = replace(settings, scheduler=replace(MLFQ, policy=PolicyConfig()))
    plain = replace(plain, worker=replace(plain.worker, parking=ParkingSettings()))
    prompts = [[1, 403, 407], [1, 410]]
    without, profiled = build_engine(plain), build_engine(settings)
    assert without.profile is None
    assert profiled.profile is not None
    expected = tokens(generate(without.engine, requests(prompts)))
    assert tokens(generate(profiled.engine, requests(prompts))) == expected


def test_each_model_of_a_group_has_a_profile_of_its_own(stories_path, tmp_path):
    models = {"small": small_model(tmp_path / "small"), "stories": stories_path}
    settings = replace(settings_of(models, tmp_path), scheduler=MLFQ)
    executor = LocalExecutor(Worker(settings.worker))
    driver = Driver(executor)
    subjects = []
    for place in range(len(models)):
        driver.load(place)
        profile = find_profile(settings, executor, place)
        subjects.append((profile.subject.model, profile.prefill[-1][0]))
        driver.order(WeightMove.EVICT, place)
    assert subjects == [("small", 128), ("stories", 512)]
    assert len(list((settings.worker.cache_dir / "profiles").iterdir())) == 2
    executor.close()


def test_times_are_measured_only_if_something_needs_them(settings):
    plain = replace(settings, scheduler=replace(MLFQ, policy=PolicyConfig()))
    plain = replace(plain, worker=replace(plain.worker, parking=ParkingSettings()))
    executor = WatchedExecutor(plain.worker)
    load_weights(executor, STORIES)
    assert find_profile(plain, executor, STORIES) is None
    assert not executor.outputs
    assert find_profile(plain, executor, STORIES, is_needed=True) is not None
    executor.close()


def test_the_next_start_finds_what_was_measured(settings, executor):
    first = find_profile(settings, executor, STORIES)
    (path,) = (settings.worker.cache_dir / "profiles").iterdir()
    num_outputs = len(executor.outputs)
    assert find_profile(settings, executor, STORIES) == first == read_profile(path)
    assert len(executor.outputs) == num_outputs


def test_another_group_is_measured_anew(settings, executor):
    find_profile(settings, executor, STORIES)
    find_profile(replace(settings, scheduler=replace(MLFQ, max_num_seqs=4)), executor, STORIES)
    assert len(list((settings.worker.cache_dir / "profiles").iterdir())) == 2


def test_a_damaged_file_in_the_cache_is_measured_again(settings, executor):
    find_profile(settings, executor, STORIES)
    (path,) = (settings.worker.cache_dir / "profiles").iterdir()
    path.write_text("{")
    assert find_profile(settings, executor, STORIES) == read_profile(path)


def test_a_cache_that_cannot_be_written_is_done_without(settings, executor):
    (settings.worker.cache_dir / "profiles").write_text("in the way")
    assert find_profile(settings, executor, STORIES) is not None


def test_the_file_that_is_named_is_taken(settings, executor, tmp_path, caplog):
    path = tmp_path / "given.json"
    write_profile(Profile.flat(0.01, 0.001), path)
    assert find_profile(naming(settings, path), executor, STORIES) == Profile.flat(0.01, 0.001)
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"given\.json: version is None"):
        find_profile(naming(settings, path), executor, STORIES)
    with pytest.raises(ConfigError, match=r"absent\.json"):
        find_profile(naming(settings, tmp_path / "absent.json"), executor, STORIES)


def test_a_profile_of_something_else_is_remarked_on(settings, executor, tmp_path, caplog):
    path = tmp_path / "given.json"
    profile = find_profile(settings, executor, STORIES)
    write_profile(replace(profile, subject=replace(profile.subject, dtype="bfloat16")), path)
    find_profile(naming(settings, path), executor, STORIES)
    assert "measured with another dtype" in caplog.text


@pytest.mark.dist
def test_a_gang_is_measured_in_the_same_way(settings):
    gang = start(settings, Layout(pipeline=2))
    try:
        built = gang.engine()
        assert built.profile.subject.pipeline == 2
        assert built.profile.prefill[-1][0] == 512
    finally:
        gang.stop()


def test_the_command_prints_and_writes(stories_path, tmp_path, capsys):
    config = tmp_path / "fabric.yaml"
    config.write_text(
        f"models: [{{id: stories, source: {stories_path}}}]\n"
        "groups: [{name: g0, models: [stories], kv_cache: 4MiB, swap: {host: 1MiB}}]\n"
        f"cache_dir: {tmp_path}\n"
    )
    out = tmp_path / "deep/profile.json"
    assert main(["profile", "stories", str(config), "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "stories (float32) on 1x1 cpu" in printed
    assert "PROMPT TOKENS" in printed
    assert "host  out" in printed
    assert json.loads(out.read_text())["subject"]["model"] == "stories"
    assert main(["profile", "novels", str(config)]) == 2
    assert "has no model 'novels'; it has stories" in capsys.readouterr().err


def test_one_model_of_several_is_measured_as_if_it_were_alone(
    stories_path, tmp_path, capsys, monkeypatch
):
    config = tmp_path / "fabric.yaml"
    config.write_text(
        f"models: [{{id: a, source: {stories_path}}}, {{id: b, source: {stories_path}}}]\n"
        "groups: [{name: g0, models: [a, b], kv_cache: 4MiB, swap: {host: 1MiB}}]\n"
        f"cache_dir: {tmp_path}\n"
    )
    orders = []

    class NotingWorker(Worker):
        def move(self, given: WorkerOrders) -> None:
            orders.append(given)
            super().move(given)

    monkeypatch.setattr("fabric.engine.build.Worker", NotingWorker)
    out = tmp_path / "b.json"
    assert main(["profile", "b", str(config), "--quick", "--out", str(out)]) == 0
    assert "b (float32) on 1x1 cpu" in capsys.readouterr().out
    assert json.loads(out.read_text())["subject"]["model"] == "b"
    assert [order.model for given in orders for order in given.weights] == [1]
    assert {blocks.model for given in orders for blocks in given.blocks} == {1}
