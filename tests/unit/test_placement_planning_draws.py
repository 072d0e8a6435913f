"""Requests that a planner sees, and those by which it is judged."""

from pathlib import Path

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from placement.config import PlanInput, parse_input
from placement.planning.draws import held_out_traces, training_trace

Tree = dict[str, object]
START = "2024-01-01 00:00:"


def inputs_of(workload: Tree, *, rates: bool = True, folder: Path = Path()) -> PlanInput:
    models: list[Tree] = [{"id": name, "shape": "llama-2-7b"} for name in ("a", "b")]
    for model, rate in zip(models, (3.0, 1.0), strict=True):
        model |= {"rate_per_s": rate} if rates else {}
    return parse_input(
        {"devices": [{"type": "l4", "count": 1}], "models": models, "workload": workload},
        "plan.yaml",
        folder,
    )


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    """A request every second for forty seconds; those of the second half have long prompts."""
    path = tmp_path / "azure.csv"
    rows = [f"{START}{second:02},{10 if second < 20 else 90},5" for second in range(40)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return path


def replay_of(path: Path, trace_format: str = "azure_llm", **trace: object) -> PlanInput:
    section = {"path": str(path), "format": trace_format, **trace}
    workload = {"arrivals": "trace", "trace": section, "num_held_out": 3}
    return inputs_of(workload | {"lengths": {"prompt": 7, "output": 3}})


def test_models_are_asked_at_their_rates():
    trace = training_trace(inputs_of({"duration_s": 2000, "rate_scale": 0.5}))

    assert np.bincount(trace.models) / 2000 == pytest.approx([1.5, 0.5], rel=0.1)


def test_held_out_requests_are_none_of_those_that_the_search_sees():
    inputs = inputs_of({"seed": 7, "num_held_out": 3})

    traces = [training_trace(inputs), *held_out_traces(inputs)]

    starts = {tuple(trace.arrivals_s[:5]) for trace in traces}
    assert len(starts) == len(traces) == 4


def test_equal_inputs_draw_equal_requests():
    first, second = (training_trace(inputs_of({"arrivals": "gamma"})) for _ in range(2))

    assert first.arrivals_s.tolist() == second.arrivals_s.tolist()
    assert first.prompt_tokens.tolist() == second.prompt_tokens.tolist()


def test_states_of_a_modulated_process_multiply_rates():
    states = [{"factor": 0.0, "mean_s": 1.0}, {"factor": 4.0, "mean_s": 1.0}]

    trace = training_trace(inputs_of({"arrivals": "mmpp", "states": states, "duration_s": 2000}))

    assert len(trace) / 2000 == pytest.approx(2 * 4.0, rel=0.15)


def test_search_sees_the_first_part_of_a_traces_time_and_the_rest_is_held_out(azure: Path):
    inputs = replay_of(azure, train_share=0.5)

    training, held_out = training_trace(inputs), held_out_traces(inputs)

    assert training.duration_s == pytest.approx(20.0)
    assert training.prompt_tokens.tolist() == [10] * 20
    assert [trace.prompt_tokens.tolist() for trace in held_out] == [[90] * 20]
    assert training.names == ("a", "b")


def test_only_the_time_from_the_start_on_counts(azure: Path):
    trace = training_trace(replay_of(azure, start_s=19.5, train_share=1.0))

    assert trace.prompt_tokens.tolist() == [90] * 20
    assert trace.arrivals_s[0] == pytest.approx(0.5)


def test_rate_scale_brings_a_traces_requests_closer_together(azure: Path):
    inputs = replay_of(azure, train_share=1.0)
    faster = inputs.model_copy(
        update={"workload": inputs.workload.model_copy(update={"rate_scale": 2.0})}
    )

    trace = training_trace(faster)

    assert len(trace) == 40
    assert trace.duration_s == pytest.approx(20.0)


def test_refitted_windows_are_drawn_anew_for_each_held_out_seed(azure: Path):
    held_out = held_out_traces(replay_of(azure, window_s=10.0))

    assert len({tuple(trace.arrivals_s) for trace in held_out}) == 3
    assert all((trace.prompt_tokens == 90).all() for trace in held_out)


def test_start_after_a_traces_end_is_refused(azure: Path):
    with pytest.raises(ConfigError, match=r"trace\.start_s is 50; .*azure\.csv is 40 s long"):
        training_trace(replay_of(azure, start_s=50.0))


def test_time_in_which_nobody_asks_is_refused(tmp_path: Path):
    path = tmp_path / "gap.csv"
    rows = [f"{START}{second},10,5" for second in ("00", "59")]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    inputs = replay_of(path, start_s=10.0, train_share=0.3)

    with pytest.raises(ConfigError, match=r"gap\.csv: nobody asks .* from 10 s on"):
        training_trace(inputs)


@pytest.mark.parametrize(
    ("trace_format", "mapping", "problem"),
    [
        ("azure_llm", "stripe", "mapping is stripe; .* only shares is possible"),
        ("journal", "shares", "mapping is shares; allowed for journal: stripe, blocks, names"),
    ],
)
def test_mapping_that_a_format_cannot_have_is_refused(
    azure: Path, tmp_path: Path, trace_format: str, mapping: str, problem: str
):
    path = azure if trace_format == "azure_llm" else journal(tmp_path, "a")

    with pytest.raises(ConfigError, match=problem):
        training_trace(replay_of(path, trace_format, mapping=mapping))


def journal(folder: Path, model: str) -> Path:
    """Two requests to a model, as our benchmark saves them."""
    path = folder / "bench.json"
    path.write_text(
        f'{{"models": {{"{model}": {{"start_times": [0.0, 1.0], "input_lens": [4, 4], '
        '"output_lens": [2, 2], "errors": ["", ""]}}}'
    )
    return path


def test_journals_names_are_our_models(tmp_path: Path):
    trace = training_trace(replay_of(journal(tmp_path, "b"), "journal", train_share=1.0))

    assert trace.models.tolist() == [1, 1]
    assert trace.prompt_tokens.tolist() == [4, 4]


def test_journal_of_another_model_names_it(tmp_path: Path):
    with pytest.raises(ConfigError, match="asks 'other'; the models are a, b"):
        training_trace(replay_of(journal(tmp_path, "other"), "journal"))


def test_functions_invocations_take_lengths_of_the_input(tmp_path: Path):
    path = tmp_path / "maf2.csv"
    rows = [f"app,f{number % 2},{number + 1}.5,0.5" for number in range(10)]
    path.write_text("\n".join(["app,func,end_timestamp,duration", *rows]) + "\n")

    trace = training_trace(replay_of(path, "maf2", train_share=1.0))

    assert sorted(set(trace.models.tolist())) == [0, 1]
    assert set(trace.prompt_tokens.tolist()) == {7}
    assert len(trace) == 10
