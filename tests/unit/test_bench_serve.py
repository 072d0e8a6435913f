"""`fabric bench serve` end to end against a fake router, and its load generator."""

import asyncio
import json

import pytest

from fabric.cli import main
from fabric.cli.bench_load import LoadOptions, run_load
from fabric.cli.bench_prompts import PlannedRequest
from fabric.client import AsyncClient, RetryPolicy
from fabric.core.errors import Overloaded
from fabric.core.prompt import ChatMessage
from fabric.core.request import FinishReason, Objectives, SequenceDelta
from tests.unit.fake_router import COMPLETED, HANG, STARTED, delta, serving, serving_in_thread


@pytest.fixture
def router():
    with serving_in_thread() as fake:
        yield fake


@pytest.fixture
def bench(router):
    def run(*words: str) -> int:
        return main(["bench", "serve", "--model", "tiny", "--target", router.target, *words])

    return run


def test_random_load_is_measured_and_written(router, bench, tmp_path, capsys):
    path = tmp_path / "result.json"
    code = bench(
        *("--num-prompts", "6", "--request-rate", "500", "--cv", "2", "--input-len", "9"),
        *("--output-len", "4", "--ignore-eos", "--num-warmups", "1", "--json", str(path)),
        *("--goodput", "ttft:5000", "e2el:9000", "--metric-percentiles", "50,99"),
    )
    assert code == 0
    assert "Serving Benchmark Result" in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert (result["completed"], result["failed"]) == (6, 0)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (54, 24)
    assert (result["request_rate"], result["burstiness"]) == (500.0, 0.25)
    assert result["slo_attainment"] == 1.0
    assert [len(gaps) for gaps in result["itls"]] == [3] * 6
    assert result["median_e2el_ms"] >= result["median_ttft_ms"] > 0
    assert len(router.specs) == 7
    assert all(spec.sampling.ignore_eos for spec in router.specs)


def test_what_the_scheduler_may_know_is_sent_and_answers_are_kept_if_asked_for(
    router, bench, tmp_path
):
    path = tmp_path / "result.json"
    words = ("--num-prompts", "2", "--output-len", "3", "--save-texts", "--json", str(path))
    assert bench(*words, "--tenant", "acme", "--tell-lengths") == 0
    assert [(spec.tenant, spec.expected_tokens) for spec in router.specs] == [("acme", 3)] * 2
    result = json.loads(path.read_text())
    assert result["generated_texts"] == [" w0 w1 w2"] * 2
    assert result["max_output_tokens_per_s"] >= 3
    assert result["kv_bytes_swapped"] == 0


def test_a_trace_gives_times_and_lengths(router, bench, tmp_path):
    trace, path = tmp_path / "trace.jsonl", tmp_path / "result.json"
    rows = [(0, 5, 2), (100, 900, 3), (200, 7, 900)]
    trace.write_text(
        "".join(
            json.dumps({"timestamp": at, "input_length": i, "output_length": o}) + "\n"
            for at, i, o in rows
        )
    )
    code = bench(
        *("--trace", str(trace), "--trace-scale", "0.1", "--max-input-len", "20"),
        *("--max-output-len", "6", "--result-file", str(path)),
    )
    result = json.loads(path.read_text())
    assert code == 0
    assert result["input_lens"] == [5, 20, 7]
    assert result["output_lens"] == [2, 3, 6]
    assert result["start_times"] == pytest.approx([0.0, 0.01, 0.02])
    assert result["request_rate"] == pytest.approx(100)


def test_a_file_gives_prompts(router, bench, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "Why?"}\n')
    assert bench("--dataset", str(prompts), "--chat", "--num-prompts", "2") == 0
    messages = [spec.prompt.messages for spec in router.specs]
    assert messages == [(ChatMessage("user", "Why?"),)] * 2


def test_failed_requests_are_counted_and_told(router, bench, tmp_path, capsys):
    router.scripts = [[Overloaded("the queue is full")]]
    path = tmp_path / "result.json"
    assert bench("--num-prompts", "3", "--output-len", "2", "--json", str(path)) == 0
    result = json.loads(path.read_text())
    assert (result["completed"], result["failed"], result["refused"]) == (2, 1, 1)
    assert sorted(result["errors"]) == ["", "", "Overloaded: the queue is full"]
    assert "fabric: Overloaded: the queue is full" in capsys.readouterr().err


def test_a_benchmark_without_any_answer_fails(router, bench):
    router.scripts = [[Overloaded("the queue is full")]]
    assert bench("--num-prompts", "1") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--goodput", "speed:5"],
        ["--cv", "-1"],
        ["--request-rate", "0"],
        ["--cv", "1", "--trace"],
        ["--model", "other=0"],
        ["--popularity", "-1"],
        ["--slo-scale", "0"],
    ],
)
def test_wrong_options_exit_with_2(bench, words):
    with pytest.raises(SystemExit) as exit_:
        bench(*words)
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "tiny"],
        ["--model", "other=2", "--popularity", "1"],
        ["--goodput-of", "other", "ttft:5"],
    ],
)
def test_options_that_contradict_each_other_exit_with_2(router, bench, words):
    assert bench(*words) == 2
    assert not router.specs


def test_several_models_are_asked_by_their_weights(router, bench, tmp_path, capsys):
    path = tmp_path / "result.json"
    words = ("--model", "big=3", "--num-prompts", "40", "--request-rate", "1000", "--cv", "4")
    assert bench(*words, "--output-len", "2", "--input-len", "3", "--save", str(path)) == 0
    result = json.loads(path.read_text())
    rows = result["models"]
    assert rows.keys() == {"tiny", "big"}
    assert rows["big"]["request_rate"] == 750.0
    asked = {name: sum(spec.model == name for spec in router.specs) for name in rows}
    assert {name: row["completed"] for name, row in rows.items()} == asked
    assert sum(asked.values()) == result["completed"] == 40
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[-4:]] == ["MODEL", "tiny", "big", "total"]


def test_requests_longer_than_the_context_are_cut_and_that_is_told(router, bench, capsys):
    assert bench("--num-prompts", "2", "--input-len", "60", "--output-len", "9") == 0
    assert [len(spec.prompt.token_ids) for spec in router.specs] == [55, 55]
    assert capsys.readouterr().err == "fabric: tiny: 2 requests are cut to 64 tokens\n"


def test_slos_are_a_multiple_of_the_latency_alone_and_sent_if_late_ones_are_refused(
    router, bench, tmp_path
):
    path = tmp_path / "result.json"
    words = ("--num-prompts", "2", "--output-len", "4", "--input-len", "3", "--json", str(path))
    assert bench(*words, "--slo-scale", "1000", "--goodput", "ttft:250", "--refuse-if-late") == 0
    result = json.loads(path.read_text())
    (row,) = result["models"].values()
    bound_ms = row["slos_ms"]["e2el"]
    assert bound_ms == pytest.approx(1000 * row["unloaded_e2el_ms"])
    alone, asked = router.specs[:4], router.specs[4:]
    assert [spec.objectives for spec in alone] == [Objectives()] * 4
    assert [spec.objectives.ttft_s for spec in asked] == [0.25, 0.25]
    assert asked[0].objectives.e2e_s == pytest.approx(bound_ms / 1e3)
    assert all(spec.objectives.refuse_if_late for spec in asked)
    assert result["slo_attainment"] == 1.0


def test_errors_of_one_kind_are_told_once(router, bench, capsys):
    router.scripts = [[Overloaded(f"{i} wait")] for i in range(3)]
    bench("--num-prompts", "4", "--output-len", "2", "--input-len", "2", "--max-concurrency", "1")
    assert capsys.readouterr().err == "fabric: Overloaded: 0 wait (and 2 more)\n"


def test_a_missing_trace_exits_with_2(bench, capsys):
    assert bench("--trace", "gone.csv") == 2
    assert "gone.csv" in capsys.readouterr().err


async def test_waiting_for_a_place_counts_as_latency():
    requests = [PlannedRequest("tiny", 0.0, "a", 2), PlannedRequest("tiny", 0.0, "b", 2)]
    async with serving() as router, AsyncClient(router.target) as client:
        router.scripts = [[STARTED, delta(0, "x"), HANG]]
        generate = {"timeout_s": 0.1}
        options = LoadOptions(max_concurrency=1, generate=generate)
        (first, second), duration_s = await run_load(client, requests, options)
    assert first.error.startswith("DeadlineExceeded")
    assert second.is_completed
    assert second.ttft_s >= 0.1
    assert duration_s >= second.e2e_s


async def test_a_slow_answer_does_not_delay_later_requests():
    requests = [PlannedRequest("tiny", 0.0, "a", 2), PlannedRequest("tiny", 0.02, "b", 2)]
    async with (
        serving() as router,
        AsyncClient(router.target, retry=RetryPolicy(max_attempts=1)) as client,
    ):
        router.scripts = [[STARTED, HANG]]
        options = LoadOptions(generate={"timeout_s": 0.3})
        records, _ = await asyncio.wait_for(run_load(client, requests, options), 5)
    assert records[1].e2e_s < 0.2


async def test_tokens_that_come_together_are_one_gap():
    both = SequenceDelta(0, 1, (1, 2), "bc", finish_reason=FinishReason.LENGTH)
    async with serving() as router, AsyncClient(router.target) as client:
        router.scripts = [[STARTED, delta(0, "a"), both, COMPLETED]]
        records, _ = await run_load(client, [PlannedRequest("tiny", 0.0, "a", 3)], LoadOptions())
    assert records[0].output_len == 3
    assert len(records[0].itls_s) == 1
    assert records[0].num_preemptions == 1
