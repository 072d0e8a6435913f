"""The command line of the planner: what it takes, and how it shows what it found."""

import io
import json
import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from placement.cli import units
from placement.cli.arguments import new_parser
from placement.cli.main import main
from placement.cli.output import Answer, as_json, give
from placement.cli.parallelize import shown
from placement.cli.reports import Cut
from placement.cli.serving_tables import (
    attainment_table,
    group_table,
    latency_table,
    model_table,
    plan_notes,
)
from placement.cli.tables import Cell, Table, met, plain, print_tables
from placement.planning.report import Interval
from tests.unit.planner_answers import GROUPS, PLAN, SERVING

TABLE = Table("Numbers", ("name", "count"), (("one", "1"), ("[twenty]", Cell("20", "red"))))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def parsed(*argv: str) -> Namespace:
    return new_parser().parse_args(argv)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as raised:
        parsed(*argv)
    assert raised.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def output(**changes: Any) -> Namespace:
    return Namespace(**{"json": False, "plot": None, "quiet": False, **changes})


@pytest.mark.parametrize(
    ("text", "mesh"), [("2x4", (2, 4)), ("8", (1, 8)), ("1x1", (1, 1))]
)  # fmt: skip
def test_mesh_is_nodes_and_devices_of_each(text: str, mesh: tuple[int, int]):
    assert parsed("parallelize", "llama-3-8b", "--mesh", text).mesh == mesh


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("parallelize", "m", "--mesh", "2x0"), "expected NODESxDEVICES"),
        (("parallelize", "m", "--decode", "0"), "expected a whole number above 0"),
        (("parallelize", "m", "--memory", "20Gx"), "expected a whole number above 0"),
        (("plan", "in.yaml", "--plot", "out.pdf"), "must end in .png or .html"),
        (("plan", "in.yaml", "--out", "/no/such/plan.yaml"), "there is no folder /no/such"),
        (("capacity", "in.yaml", "--values", "rate"), "expected QUANTITY=X,..."),
        (("capacity", "in.yaml", "--values", "rate=1,fast"), "expected a number above 0"),
        (("capacity", "in.yaml", "--sweep", "rate,,cv"), "expected names with commas"),
        (("explain", "in.yaml", "--what-if", "rate=1,2"), "expected one number"),
        (("explain", "in.yaml", "--what-if", "rate=nan"), "expected a number above 0"),
        (("simulate", "p.yaml", "in.yaml", "--trace", "day.csv"), "expected FORMAT:FILE"),
        (("explain", "in.yaml", "--model", "a", "--group", "g0"), "not allowed with"),
    ],
)
def test_wrong_argument_is_refused_with_what_is_expected(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], problem: str
):
    assert problem in refused(capsys, *argv)


def test_sizes_of_memory_have_units():
    assert parsed("parallelize", "m", "--memory", "1.5GiB").memory == 3 * 2**29
    assert parsed("parallelize", "m", "--memory", "20GB").memory == 20 * 10**9


def test_wrong_input_is_one_line_that_names_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "in.yaml"
    path.write_text("devices: [{type: l4, cuont: 1}]\nmodels: []\n")

    code = main(["plan", str(path)])

    [line] = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"fabric-plan: {path}: devices.0.cuont: unknown; allowed: type, count")


def test_plain_table_is_aligned_with_numbers_to_the_right():
    assert plain(TABLE).splitlines() == [
        "Numbers",
        "name      count",
        "one           1",
        "[twenty]     20",
    ]


def test_table_on_a_terminal_has_colours_and_the_same_cells():
    stream = Terminal()

    print_tables([TABLE], stream)

    assert "[twenty]" in stream.getvalue()
    assert "─" in stream.getvalue()


@pytest.mark.parametrize(("share", "style"), [(0.99, "green"), (0.975, "yellow"), (0.9, "red")])
def test_share_is_coloured_by_how_near_the_target_is(share: float, style: str):
    assert met(share, 0.99, "x") == Cell("x", style)


def test_group_table_says_where_each_model_is_and_what_it_takes():
    text = plain(group_table(GROUPS))

    assert "6 devices in 2 groups" in text
    assert "g0     2 x a100-80gb  pp1 tp2         30.0    20.0    72.0  62.0%  chat, mail" in text


def test_model_without_a_group_has_no_times():
    last = plain(model_table(SERVING, 0.99)).splitlines()[-1]

    assert last.split() == [
        "other",
        "2.5",
        "-",
        "-",
        "-",
        "1.00",
        "s",
        "-",
        "-",
        "50.0",
        "ms",
        "0.0%",
    ]


def test_latency_table_has_all_quantiles_of_all_times():
    lines = plain(latency_table(SERVING)).splitlines()

    assert len(lines) == 2 + 3 * len(SERVING.models)
    assert "132 ms" in lines[2]
    assert "384 ms" in lines[2]


def test_attainment_of_all_comes_last():
    assert plain(attainment_table(SERVING, 0.99)).splitlines()[-1].split() == [
        "all",
        "3,000",
        "96.4%",
    ]


def test_notes_say_attainment_held_out_fewest_and_warnings():
    text = "\n".join(plan_notes(PLAN))

    assert "has not seen 95.5% (94.0% to 97.0%, 5 seeds)" in text
    assert "6 x a100-80gb and 2 x l4, 22.18 an hour" in text
    assert "Warning: other: is in no group" in text


def test_one_unseen_workload_has_no_interval():
    one = replace(PLAN, held_out=Interval(0.9, 0.0, 1.0, 1))

    assert "90.0% (of one workload)" in plan_notes(one)[0]


def test_first_answer_says_that_there_is_a_thorough_one():
    assert "--thorough" in plan_notes(replace(PLAN, held_out=None))[0]


def test_json_has_the_whole_answer_and_no_nan(capsys: pytest.CaptureFixture[str]):
    give(Answer("Plan", PLAN, (TABLE,)), output(json=True))

    tree = json.loads(capsys.readouterr().out)
    assert tree["serving"]["groups"][0]["models"] == ["chat", "mail"]
    assert tree["serving"]["models"][3]["ttft_s"]["p99"] is None


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]):
    give(Answer("Plan", PLAN, (TABLE,), ("note",)), output(quiet=True))

    assert capsys.readouterr() == ("", "")


def test_piped_answer_is_plain_tables_and_notes(capsys: pytest.CaptureFixture[str]):
    give(Answer("Plan", PLAN, (TABLE, TABLE), ("A note.",)), output())

    assert capsys.readouterr().out == f"{plain(TABLE)}\n\n{plain(TABLE)}\n\nA note.\n"


def test_infinite_numbers_are_null():
    assert as_json({"a": (math.inf, 1.0, "x")}) == {"a": [None, 1.0, "x"]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00 s"),
        (0.0000123, "12.3 us"),
        (0.00123, "1.23 ms"),
        (0.5, "500 ms"),
        (12.34, "12.3 s"),
        (1234.5, "1,234 s"),
        (math.nan, "-"),
    ],
)
def test_seconds_are_shown_in_the_unit_that_suits(value: float, text: str):
    assert units.seconds(value) == text


def test_parallelize_prints_front_and_strategies(capsys: pytest.CaptureFixture[str]):
    code = main(["parallelize", "smollm2-135m", "--mesh", "2", "--device", "l4"])

    text = capsys.readouterr().out
    assert code == 0
    assert "fastest" in text
    assert "attention" in text


def test_parallelize_says_that_memory_is_too_small(capsys: pytest.CaptureFixture[str]):
    code = main(["parallelize", "llama-3-8b", "--mesh", "2", "--memory", "1GiB"])

    assert code == 2
    assert "no way to cut it over 1x2 a100-80 takes at most 1.0 GiB" in capsys.readouterr().err


def test_parallelize_reads_a_checkpoints_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sizes = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
        "max_position_embeddings": 512, "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))

    code = main(["parallelize", str(tmp_path / "config.json"), "--mesh", "2", "--json"])

    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["model"] == tmp_path.name
    assert sum(stage["end"] - stage["first"] for stage in report["cuts"][0]["stages"]) == 2


def test_rows_that_are_like_others_are_left_out():
    cuts = [Cut(1.0, 1.0, 100, (), ()), Cut(1.01, 1.0, 99, (), ()), Cut(2.0, 0.6, 99, (), ())]

    assert shown(cuts, [0]) == [0, 2]
    assert shown(cuts, [1]) == [1, 2]
