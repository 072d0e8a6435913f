"""An engine that runs ahead of what is known says what one says that waits for every token."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.errors import RequestCancelled
from fabric.core.request import GenerationRequest, LoadReport
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import Generated
from fabric.engine.settings import EngineSettings, ParkingSettings
from fabric.scheduler.policies import PolicyConfig
from tests.integration.driven_models import settings_of
from tests.integration.gang_layouts import Layout, start_workers
from tests.integration.test_engine_exactness import STORIES_PROMPTS, settings

pytestmark = pytest.mark.usefixtures("one_torch_thread")

MIB = 2**20
KINDS: tuple[dict[str, object], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "stop": (" the", "day")},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 50, "n": 3},
    {"temperature": 1.2, "min_tokens": 6, "stop_token_ids": tuple(range(260, 330))},
    {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "logprobs": 0},
    {"temperature": 1.0, "presence_penalty": 0.5, "min_p": 0.02, "logit_bias": ((300, 2.0),)},
    {"temperature": 0.7, "n": 2, "stop": ("e",), "include_stop": True, "min_tokens": 4},
)


def mixed(built: BuiltEngine, models: Sequence[str], seed: int) -> list[GenerationRequest]:
    """Requests of every kind, some of them with the same beginning."""
    draw = random.Random(seed)
    wanted = []
    for number in range(24):
        kind = KINDS[number % len(KINDS)]
        sampling = SamplingParams(
            max_tokens=draw.randint(1, 40), seed=number, ignore_eos=draw.random() < 0.5, **kind  # type: ignore[arg-type]
        )  # fmt: skip
        prompt = built.tokenizer.encode(STORIES_PROMPTS[draw.randrange(len(STORIES_PROMPTS))])
        model = models[number % len(models)]
        priority = draw.choice((0, 0, 1))
        wanted.append(
            GenerationRequest(f"r{number}", model, tuple(prompt), sampling, priority=priority)
        )
    return wanted


def serve(
    built: BuiltEngine, wanted: Sequence[GenerationRequest], seed: int, troubles: float = 0.0
) -> dict[str, Generated]:
    """Let requests come one after the other; some are cancelled, some lose their blocks."""
    draw, engine = random.Random(seed), built.engine
    results = {request.request_id: Generated() for request in wanted}
    waiting = list(wanted)
    while waiting or engine.has_work:
        for _ in range(draw.randint(0, 3) if waiting else 0):
            if waiting:
                engine.add(waiting.pop(0))
        for output in engine.step():
            results[output.request_id].append(output)
        if draw.random() < troubles:
            built.scheduler.preempt(f"r{draw.randrange(24)}", swap=draw.random() < 0.5)
        if draw.random() < troubles / 8:
            engine.cancel(f"r{draw.randrange(24)}")
    return results


@contextmanager
def engines(settings: EngineSettings) -> Iterator[tuple[BuiltEngine, BuiltEngine]]:
    """One that waits, and one that runs ahead."""
    built = []
    for is_on in (False, True):
        scheduler = replace(settings.scheduler, async_scheduling=is_on)
        built.append(build_engine(replace(settings, scheduler=scheduler)))
    try:
        yield built[0], built[1]
    finally:
        for each in built:
            each.engine.close()


def check(behind: dict[str, Generated], ahead: dict[str, Generated]) -> None:
    """What was not cut off is the same to the last bit; the rest as far as it goes."""
    for name, result in behind.items():
        other = ahead[name]
        for error in (result.error, other.error):
            assert error is None or isinstance(error, RequestCancelled)
        if result.error is None and other.error is None:
            assert result.sequences == other.sequences
            continue
        for index in result.sequences.keys() & other.sequences.keys():
            pairs = zip(
                result.sequences[index].token_ids, other.sequences[index].token_ids, strict=False
            )
            assert all(one == two for one, two in pairs)


def is_empty(report: LoadReport) -> bool:
    return report.num_free_blocks == report.num_blocks and not report.num_host_blocks


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefix_cache": False, "block_size": 1},
        {"max_num_batched_tokens": 16, "block_size": 8},
        {"kv_cache_bytes": 400_000},
        {"policy": PolicyConfig("mlfq"), "max_num_seqs": 4},
        {"policy": PolicyConfig("priority"), "kv_cache_bytes": 500_000},
    ],
    ids=["plain", "small blocks", "chunks", "little memory", "mlfq", "priority"],
)
def test_requests_of_every_kind_get_the_same_answers(
    stories_path: Path, changes: dict[str, object]
) -> None:
    with engines(settings(stories_path, **changes)) as (behind, ahead):
        wanted = mixed(behind, ["stories"], seed=1)
        check(serve(behind, wanted, 2), serve(ahead, wanted, 3))
        reports = behind.scheduler.report(), ahead.scheduler.report()
        assert all(map(is_empty, reports))
        assert reports[0].num_superfluous_tokens == 0 < reports[1].num_superfluous_tokens
        # No more than one for each sequence, of which most end by themselves.
        assert reports[1].num_superfluous_tokens <= sum(r.sampling.n for r in wanted)


@pytest.mark.parametrize("seed", range(3))
def test_preemption_swapping_and_cancelling_change_no_answer(stories_path: Path, seed: int) -> None:
    parking = ParkingSettings(host_bytes=64 * MIB, debug=True)
    changed = settings(stories_path, parking=parking, kv_cache_bytes=500_000, block_size=8)
    with engines(changed) as (behind, ahead):
        wanted = mixed(behind, ["stories"], seed)
        check(serve(behind, wanted, seed, 0.8), serve(ahead, wanted, seed + 50, 0.8))
        assert ahead.scheduler.report().num_preemptions > 0
        assert is_empty(ahead.scheduler.report())


def test_models_that_take_turns_and_lose_their_weights_give_the_same_answers(
    stories_path: Path, tmp_path: Path
) -> None:
    names = ["s0", "s1", "s2"]
    models = dict.fromkeys(names, stories_path)
    changed = settings_of(models, tmp_path, memory_bytes=48 * 2**16, host_weight_bytes=8 * MIB)
    with engines(changed) as (behind, ahead):
        wanted = mixed(behind, names, seed=4)
        # When weights arrive is not ours to say: on a busy machine, turns may be too long to lose
        # them.
        for seed in range(5, 15):
            check(serve(behind, wanted, seed, 0.3), serve(ahead, wanted, seed + 1, 0.3))
            if sum(model.num_loads for model in ahead.scheduler.report().models) > len(names):
                return
        pytest.fail("no model has lost its weights")


def test_text_is_published_while_the_next_iteration_runs(stories_path: Path) -> None:
    with engines(settings(stories_path)) as (behind, ahead):
        for built, num_in_flight in ((behind, 0), (ahead, 1)):
            request = mixed(built, ["stories"], seed=1)[0]
            sampling = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
            built.engine.add(replace(request, sampling=sampling))
            for _ in range(5):
                (output,) = built.engine.step()
                assert output.deltas
                assert built.engine.num_in_flight == num_in_flight


@pytest.mark.dist
@pytest.mark.parametrize("layout", [Layout(1, 2), Layout(2, 1)], ids=str)
def test_gangs_run_ahead_in_one_stage_and_not_in_several(
    stories_path: Path, layout: Layout
) -> None:
    base = settings(stories_path, max_num_batched_tokens=16)
    alone = build_engine(base)
    wanted = mixed(alone, ["stories"], seed=7)
    expected = serve(alone, wanted, 1)
    scheduler = replace(base.scheduler, async_scheduling=True)
    executor, stop = start_workers(replace(base, scheduler=scheduler), layout)
    try:
        built = build_engine(replace(base, scheduler=scheduler), gang=executor)
        found = serve(built, wanted, 2)
        assert built.scheduler.runs_ahead == (layout.pipeline == 1)
        assert (built.scheduler.report().num_superfluous_tokens > 0) == built.scheduler.runs_ahead
    finally:
        stop()
    for name, result in expected.items():
        assert {i: s.token_ids for i, s in found[name].sequences.items()} == {
            i: s.token_ids for i, s in result.sequences.items()
        }
