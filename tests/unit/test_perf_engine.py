"""The engine's benchmark: what a machine allows, what is asked of subjects, and its bars."""

import os

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.perf_modules import perf_module


@pytest.fixture(scope="module")
def roofline():
    with perf_module("roofline") as module:
        yield module


@pytest.fixture(scope="module")
def bars():
    with perf_module("engine_bars") as module:
        yield module


@pytest.fixture(scope="module")
def jobs():
    with perf_module("engine_jobs") as module:
        yield module


@pytest.fixture(scope="module")
def subject():
    with perf_module("engine_subject") as module:
        yield module


@pytest.fixture
def limits(roofline):
    """A token reads 100 bytes and 1 for each of its context, and computes 10 and 1 for each."""
    ceilings = roofline.Ceilings(1e3, 5e2, 1e4)
    return roofline.Limits(ceilings, roofline.ModelCost(100.0, 1, 8.0, 2.0, 1.0), "bfloat16")


def measured(bars, **values):
    given = {"model": "llama-1b1", "dtype": "bfloat16", "quantization": "none"}
    return bars.Measured(**(given | {"ours": {}, "limits": {}} | values))


def printed(bars, one):
    return [str(bar) for bar in bars.bars_of(one)]


def test_decode_is_limited_by_reading_weights_and_the_mean_context(limits):
    assert limits.decode(90, 20) == pytest.approx(1e3 / (100 + 90 + 10))


def test_prefill_is_limited_by_operations_and_attends_only_to_what_came_before(limits):
    assert limits.prefill(10) == pytest.approx(10 * 1e4 / (80 + 55 + 2))


def test_a_batch_is_limited_by_its_prompts_and_by_the_slower_side_of_each_step(limits):
    prompts_s = (8 * 2 + 3 + 2) * 2 / 1e4
    step_s = max((100 + 3 + 3) / 1e3, (2 * 10 + 3 + 3) / 1e4)
    assert limits.batch([2, 2], 2) == pytest.approx(4 / (prompts_s + step_s))


def test_a_float32_model_is_limited_by_the_float32_rate(limits, roofline):
    slower = roofline.Limits(limits.ceilings, limits.cost, "float32")
    assert slower.prefill(10) == pytest.approx(limits.prefill(10) / 20)


def test_ceilings_are_those_of_the_middle_of_several_measurements(roofline):
    seen = [
        roofline.Ceilings(3.0, 1.0, 5.0, "a", "unit"),
        roofline.Ceilings(9.0, 4.0, 6.0, "b", "unit"),
        roofline.Ceilings(2.0, 2.0, 7.0, "c", "unit"),
    ]
    assert roofline.Ceilings.typical(seen) == roofline.Ceilings(3.0, 2.0, 6.0, "a", "unit")


def test_the_best_peer_is_the_one_that_we_are_least_ahead_of(bars):
    ours = {"decode_128": [12.0, 13.0, 11.0]}
    pairings = [
        bars.Pairing("vllm", ours, {"decode_128": [8.0]}),
        bars.Pairing("openvino:fp16", ours, {"decode_128": [10.0]}),
        bars.Pairing("fabric:int8", ours, {"decode_128": [20.0]}),
    ]
    one = measured(bars, ours=ours, limits={"decode_128": 16.0}, pairings=pairings)
    assert printed(bars, one)[0] == "BAR decode_128_over_best_peer 1.2 1.2 ok"


def test_a_share_is_of_the_probed_bandwidth_and_of_that_of_reads_meanwhile(bars):
    values = {"limits": {"decode_128": 16.0}, "shares": {"decode_128": [0.9, 0.85, 0.8]}}
    one = measured(bars, ours={"decode_128": [12.0]}, **values)
    assert printed(bars, one) == [
        "BAR decode_128_share_of_bandwidth 0.75 0.85 short",
        "BAR decode_128_share_of_bandwidth_meanwhile 0.85 0.85 ok",
    ]


def test_bars_of_peers_that_were_not_measured_are_left_out(bars):
    one = measured(bars, ours={"prefill_512": [1.0]}, limits={"prefill_512": 2.0})
    assert printed(bars, one) == []


def test_int8_is_held_against_the_eight_bits_of_llamacpp(bars):
    ours = {"decode_128": [23.0], "decode_1024": [29.0]}
    theirs = {"decode_128": [20.0], "decode_1024": [20.0]}
    pairings = [bars.Pairing("llamacpp:q8_0", ours, theirs)]
    one = measured(bars, quantization="int8", ours=ours, pairings=pairings)
    assert printed(bars, one) == [
        "BAR int8_decode_128_over_llamacpp_q8_0 1.15 1.15 ok",
        "BAR int8_decode_1024_over_llamacpp_q8_0 1.45 1.5 short",
    ]


def test_int4_is_held_against_our_own_int8(bars):
    ours = {"decode_128": [30.0]}
    pairings = [bars.Pairing("fabric:int8", ours, {"decode_128": [20.0]})]
    one = measured(bars, quantization="int4", ours=ours, pairings=pairings)
    assert printed(bars, one) == ["BAR int4_decode_128_over_int8 1.5 1.5 ok"]


def test_the_small_model_is_held_against_openvino_alone(bars):
    ours = {"decode_128": [11.0]}
    pairings = [
        bars.Pairing("vllm", ours, {"decode_128": [20.0]}),
        bars.Pairing("openvino:fp16", ours, {"decode_128": [10.0]}),
    ]
    one = measured(bars, model="llama-160m", ours=ours, pairings=pairings)
    assert printed(bars, one) == ["BAR 160m_decode_128_over_openvino 1.1 1.1 ok"]


def test_the_kv_pool_is_allowed_beside_the_weights(bars):
    sizes = {"peak_bytes": 400, "weight_bytes": 200, "kv_pool_bytes": 100}
    filled = measured(bars, ours={"batch": [1.0]}, startups_s=[4.0, 5.0, 6.0], **sizes)
    assert printed(bars, filled) == [
        "BAR startup_s 5 5 ok",
        "BAR peak_memory_over_weights 1.5 1.5 ok",
    ]
    assert printed(bars, measured(bars, **sizes)) == []


def test_jobs_are_chosen_by_name_or_by_kind(jobs):
    assert [job.name for job in jobs.chosen_jobs(["decode", "prefill_2048"])] == [
        "decode_128",
        "decode_1024",
        "prefill_2048",
    ]
    assert jobs.chosen_jobs(["startup"]) == []
    with pytest.raises(ValueError, match="prefil"):
        jobs.chosen_jobs(["prefil"])


def test_prompts_repeat_with_their_round_and_differ_between_rounds(jobs):
    batch = jobs.chosen_jobs(["batch"])[0]
    assert [len(prompt) for prompt in batch.prompts(1, 1000)] == list(batch.lengths)
    assert batch.prompts(1, 1000) == batch.prompts(1, 1000) != batch.prompts(2, 1000)


def test_a_process_tree_begins_with_its_root(subject):
    assert subject.process_tree(os.getpid())[0] == os.getpid()
    assert os.getpid() in subject.process_tree(os.getppid())


def test_no_two_matrices_of_a_random_checkpoint_are_equal(tmp_path):
    with perf_module("random_llama") as random_llama:
        random_llama.write_checkpoint(tmp_path, random_llama.SMOKE, 1)
    tensors = load_file(tmp_path / "model.safetensors")
    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2]
    assert len({tensor.view(torch.int16).numpy().tobytes() for tensor in matrices}) == 2 + 2 * 7
