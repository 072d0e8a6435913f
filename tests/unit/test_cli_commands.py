"""The commands against a fake router: what they print, and how they exit."""

import io
import json
import subprocess
import sys

import pytest

from fabric.cli import main
from fabric.core.errors import InvalidRequest, Unavailable
from fabric.core.generation import Completed
from fabric.core.prompt import ChatMessage, PromptChat, PromptText
from fabric.core.request import Objectives, Timing, Usage
from fabric.core.weights import WeightState
from fabric.rpc.convert_weights import wanted_state
from tests.unit.fake_router import STARTED, TWO_TOKENS, delta, serving_in_thread


@pytest.fixture
def router():
    with serving_in_thread() as fake:
        yield fake


@pytest.fixture
def fabric(router, capsys):
    """Runs a command against the fake; returns exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main([*words, "--target", router.target])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_generate_prints_the_text(router, fabric):
    router.scripts = [TWO_TOKENS]
    assert fabric("generate", "tiny", "Say hello") == (0, "Hello world\n", "")
    assert router.specs[0].prompt == PromptChat((ChatMessage("user", "Say hello"),))


def test_generate_sends_its_options(router, fabric):
    fabric(
        *("generate", "tiny", "Hi", "--system", "Be brief.", "--max-tokens", "3"),
        *("--temperature", "0", "--stop", "a", "--stop", "b", "--seed", "5", "--ignore-eos"),
    )
    spec = router.specs[0]
    assert spec.prompt.messages[0] == ChatMessage("system", "Be brief.")
    assert (spec.sampling.max_tokens, spec.sampling.temperature) == (3, 0.0)
    assert (spec.sampling.stop, spec.sampling.seed) == (("a", "b"), 5)
    assert spec.sampling.ignore_eos is True
    assert spec.sampling.top_p is None
    assert (spec.tenant, spec.objectives, spec.expected_tokens) == ("", Objectives(), None)


def test_generate_says_how_to_schedule(router, fabric):
    fabric(
        *("generate", "tiny", "Hi", "--tenant", "acme", "--expected-tokens", "9"),
        *("--priority", "-1", "--objective", "ttft:0.5", "--objective", "e2e:30"),
    )
    spec = router.specs[0]
    assert (spec.tenant, spec.expected_tokens, spec.priority) == ("acme", 9, -1)
    assert spec.objectives == Objectives(ttft_s=0.5, e2e_s=30.0)


def test_generate_asks_to_be_refused_rather_than_late(router, fabric):
    fabric("generate", "tiny", "Hi", "--refuse-if-late")
    fabric("generate", "tiny", "Hi", "--refuse-if-late", "--objective", "ttft:0.5")
    assert [spec.objectives for spec in router.specs] == [
        Objectives(refuse_if_late=True),
        Objectives(ttft_s=0.5, refuse_if_late=True),
    ]


@pytest.mark.parametrize(("load_s", "told"), [(2.125, "2.1 s"), (0.0042, "4.2 ms")])
def test_generate_says_how_long_it_waited_for_the_weights(router, fabric, load_s, told):
    woken = Completed(Usage(3, 1), Timing(load_s=load_s))
    router.scripts = [[STARTED, delta(0, "Hello", last=True), woken]]
    words = ("generate", "tiny", "Say hello")
    assert fabric(*words) == (0, "Hello\n", f"fabric: waited {told} for the weights\n")


def test_generate_reads_a_plain_prompt_from_standard_input(router, fabric, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon"))
    assert fabric("generate", "tiny", "-", "--no-chat", "--max-tokens", "1")[0] == 0
    assert router.specs[0].prompt == PromptText("Once upon")


def test_generate_as_json_is_the_whole_answer(router, fabric):
    router.scripts = [TWO_TOKENS]
    code, out, _ = fabric("generate", "tiny", "x", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["sequences"][0]["text"] == "Hello world"
    assert answer["sequences"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["timing"]["swapped_s"] == 0.25


def test_an_error_is_one_line_on_stderr(router, fabric):
    router.scripts = [[InvalidRequest.of("sampling.temperature", "is -1.0; allowed: 0 to 100")]]
    code, out, err = fabric("generate", "tiny", "x", "--temperature", "-1")
    assert (code, out.strip()) == (1, "")
    assert err == "fabric: sampling.temperature: is -1.0; allowed: 0 to 100\n"


def test_a_stream_that_breaks_keeps_its_text_and_fails(router, fabric):
    router.scripts = [[STARTED, delta(0, "Hello"), Unavailable("the device group died")]]
    code, out, err = fabric("generate", "tiny", "x")
    assert (code, out.strip()) == (1, "Hello")
    assert err == "fabric: the device group died\n"


def test_an_interrupt_cancels_the_request(router, fabric, monkeypatch):
    def interrupt(*words: object, **_: object) -> None:
        if words:
            raise KeyboardInterrupt

    router.scripts = [[STARTED, delta(0, "Hello"), "hang"]]
    monkeypatch.setattr("fabric.cli.generate.print", interrupt, raising=False)
    code, _, err = fabric("generate", "tiny", "x")
    assert (code, err) == (130, "fabric: interrupted\n")
    router.await_cancellation()


def test_models_are_listed(fabric):
    code, out, _ = fabric("models")
    assert code == 0
    assert out.splitlines()[1].split() == [
        *("tiny", "ready", "LlamaForCausalLM", "float32", "64", "260,000", "left", "(resident)")
    ]


def test_models_as_json(fabric):
    (model,) = json.loads(fabric("models", "--json")[1])
    assert (model["id"], model["state"], model["vocab_size"]) == ("tiny", "ready", 100)
    assert model["weights"] == {"left": "resident"}


def test_status_shows_each_groups_load(fabric):
    code, out, _ = fabric("status")
    assert code == 0
    summary, _, left, right = out.splitlines()[:4]
    assert "3 requests in flight" in summary
    load = ["2", "1", "25.0", "25.0", "1,234", "5", "mlfq", "4", "30", "20"]
    assert left.split() == ["left", "ready", "3", "tiny", *load]
    load = ["0", "0", "-", "-", "0", "0", "-", "0", "0", "0"]
    assert right.split() == ["right", "down", "0", "other", *load]


def test_status_shows_what_each_model_takes(fabric):
    out = fabric("status")[1]
    header, tiny, other = out.split("\n\n")[1].splitlines()
    assert header.split()[:5] == ["GROUP", "MODEL", "WEIGHTS", "PINNED", "RUNNING"]
    figures = ["2", "1", "1,234", "12", "3", "5.0", "4", "0.12"]
    assert tiny.split() == ["left", "tiny", "resident", "yes", *figures]
    figures = ["0", "0", "0", "0", "0", "1,024.0", "0", "-"]
    assert other.split() == ["left", "other", "cold", "no", *figures]


def test_status_shows_who_has_the_memory(fabric):
    assert fabric("status")[1].splitlines()[-2] == (
        "left: 64 slabs of 4.0 MiB: 20 weights, 12 KV (3 idle), 32 free; 1.0 MiB fragmented"
    )


def test_status_says_why_a_model_could_not_be_loaded(fabric):
    assert fabric("status")[1].splitlines()[-1] == (
        "left: model other could not be loaded: /models/other/model.safetensors has changed"
    )


def test_status_fits_a_narrow_terminal(fabric, monkeypatch):
    monkeypatch.setattr("fabric.cli.status.terminal_width", lambda: 40)
    out = fabric("status")[1]
    *tables, memory = [part.splitlines() for part in out.split("\n\n")]
    assert all(len(line) <= 40 for table in tables for line in table[-3:])
    assert all(table[-1].startswith(("right", "left   other")) for table in tables)
    assert [line for line in memory if line.startswith("left: 64 slabs")]


def test_status_as_json(fabric):
    status = json.loads(fabric("status", "--json")[1])
    assert status["groups"][0]["load"]["num_blocks"] == 100
    assert status["groups"][0]["load"]["num_slabs"] == 64
    tiny = status["groups"][0]["load"]["models"][0]
    assert (tiny["state"], tiny["pinned"], tiny["num_idle_slabs"]) == ("resident", True, 3)
    other = status["groups"][0]["load"]["models"][1]
    assert (tiny["problem"], other["problem"].endswith("has changed")) == ("", True)
    assert status["groups"][1]["state"] == "down"


def test_requests_are_shown_where_they_are(router, fabric):
    code, out, err = fabric("status", "--requests", "--group", "left", "--limit", "5")
    assert (router.explain_request.group, router.explain_request.limit) == ("left", 5)
    _, row, more = out.splitlines()
    cells = [cell for cell in row.split("  ") if cell]
    assert [cell.strip() for cell in cells] == [
        *("r-1", "tiny", "ac?me", "left", "swapped", "2", "1", "100", "7", "3", "9", "host", "4"),
        *("0.50", "0.38", "0.25", "1.50", "0.75", "12.0", "r-2 ranks before it"),
    ]
    assert more == "and 3 more"
    assert (code, err) == (1, "fabric: device group right does not answer\n")


def test_requests_as_json(fabric):
    tree = json.loads(fabric("status", "--requests", "--json")[1])
    assert tree["requests"][0]["phase"] == "swapped"
    assert tree["requests"][0]["rank"] == [0.0, "inf"]
    assert tree["num_omitted"] == 3


def test_the_policy_is_changed(router, fabric):
    words = ("policy", "mlfq", "--set", "alpha_s=1", "--set", "quantum_ratio=2.5")
    assert fabric(*words, "--group", "left") == (0, "left: fcfs -> mlfq\n", "")
    request = router.policy_request
    assert (request.group, request.policy) == ("left", "mlfq")
    assert dict(request.numbers) == {"alpha_s": 1.0, "quantum_ratio": 2.5}


def test_a_group_that_keeps_its_policy_fails_the_command(fabric):
    code, out, err = fabric("policy", "mlfq")
    assert (code, out) == (1, "left: fcfs -> mlfq\n")
    assert err == "fabric: right: it is down\n"


@pytest.mark.parametrize(
    ("words", "state", "pinned"),
    [
        (("load",), WeightState.RESIDENT, None),
        (("unload",), WeightState.HOST, None),
        (("unload", "--to", "cold"), WeightState.COLD, None),
        (("pin",), WeightState.RESIDENT, True),
        (("pin", "--off"), None, False),
    ],
)
def test_a_models_weights_are_moved_and_pinned(router, fabric, words, state, pinned):
    code, out, err = fabric(*words, "tiny", "--group", "left", "--timeout", "2.5")
    there = f"{state or WeightState.RESIDENT}{', pinned' if pinned else ''}"
    assert (code, out, err) == (0, f"left: tiny is {there} (1.50 s)\n", "")
    request = router.residence_request
    assert (request.model, request.group) == ("tiny", "left")
    assert wanted_state(request.state) is state
    assert (request.pinned if request.HasField("pinned") else None) is pinned
    assert request.timeout.ToMilliseconds() == 2500


def test_a_group_that_does_not_get_there_fails_the_command(fabric):
    code, out, err = fabric("load", "tiny")
    assert (code, out) == (1, "left: tiny is resident (1.50 s)\n")
    assert err == "fabric: right: is still loading after 60 s\n"


def test_drain_succeeds_only_when_all_is_done(router, fabric):
    assert fabric("drain", "left", "--timeout", "2") == (0, "left: drained\n", "")
    assert router.drain_request.timeout.seconds == 2
    assert fabric("drain", "busy")[0] == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["generate"],
        ["generate", "m", "x", "--objective", "soon:1"],
        ["models", "--wrong"],
        ["bench"],
        ["policy"],
        ["policy", "mlfq", "--set", "alpha_s"],
        ["policy", "mlfq", "--set", "alpha_s=x"],
    ],
)
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "usage: fabric" in capsys.readouterr().err


def test_a_wrong_option_value_exits_with_2(capsys):
    assert main(["models", "--tls-ca", "nowhere.pem"]) == 2
    assert capsys.readouterr().err.startswith("fabric: cannot read the TLS file nowhere.pem")


def test_the_base_install_is_enough_for_the_command():
    heavy = {"torch", "ray", "rich", "pydantic", "yaml", "msgpack", "numpy"}
    code = f"import sys, fabric.cli; sys.exit(repr({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
