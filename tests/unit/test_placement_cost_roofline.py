import subprocess
import sys
from dataclasses import replace

import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.catalog import device, device_from_mapping, device_names, shape
from placement.cost.calibration import Calibration
from placement.cost.closed_loop import ClosedLoop, loop_times
from placement.cost.fitting import fit
from placement.cost.iteration import Roofline, Work
from placement.cost.model import ModelCost
from placement.cost.roofline import RooflineCost
from placement.cost.sizes import weight_bytes
from placement.devices import GroupConfig, Link

IDEAL = Calibration(1.0, 1.0, 1.0, 0.0, 0.0)
GIB = 1 << 30


def roofline(
    name: str = "llama-3-8b",
    kind: str = "h100",
    parallel: ParallelConfig | None = None,
    calibration: Calibration = IDEAL,
) -> Roofline:
    return Roofline(shape(name), device(kind), parallel or ParallelConfig(), calibration)


def cost_of(name: str, config: GroupConfig) -> ModelCost:
    costs = RooflineCost({name: shape(name)}, {config.device: device(config.device)})
    cost = costs.cost(name, config)
    assert cost is not None
    return cost


def test_one_sequence_takes_as_long_as_its_weights_are_read() -> None:
    model = shape("llama-3-8b")
    # Of the embedding, only one row is read.
    read = 2 * (model.num_parameters - model.embedding_numbers - model.hidden_size)
    assert roofline().seconds(Work.decode(1, 0)) == pytest.approx(read / 3350e9, rel=1e-9)


def test_context_is_read_at_the_memorys_rate() -> None:
    at = roofline()
    more_s = at.seconds(Work.decode(4, 3000)) - at.seconds(Work.decode(4, 1000))
    assert more_s == pytest.approx(4 * 2000 * 131_072 / 3350e9, rel=1e-9)


def test_a_long_prompt_takes_as_long_as_its_arithmetic() -> None:
    model = shape("llama-3-8b")
    matrices = 2 * 32 * model.layer_matrices * 8192
    attention = 32 * 4 * 4096 * (8192 * 8193 / 2)
    head_s = 2 * 128256 * 4096 / 3350e9
    expected_s = (matrices + attention) / 989e12 + head_s
    assert roofline().seconds(Work.prompts(8192)) == pytest.approx(expected_s, rel=1e-9)


def test_eight_bits_double_the_arithmetic_where_the_device_can() -> None:
    assert device("h100").matrix_flops_per_s(8) == 2 * device("h100").matrix_flops_per_s(16)
    assert device("a100-80").matrix_flops_per_s(8) == device("a100-80").matrix_flops_per_s(16)
    assert device("h100").matrix_flops_per_s(4) == device("h100").matrix_flops_per_s(8)


def test_two_ranks_halve_the_seconds_where_links_cost_nothing() -> None:
    free = replace(device("h100"), inside=Link(1e30, 0.0))
    one, two = (
        Roofline(shape("llama-3-8b"), free, ParallelConfig(tensor=size), IDEAL) for size in (1, 2)
    )
    work = Work.decode(8, 1000)
    # Norms are on both ranks.
    assert two.seconds(work) == pytest.approx(one.seconds(work) / 2, rel=1e-3)


def test_all_reduces_cost_their_delays_and_bytes() -> None:
    free = replace(device("h100"), inside=Link(1e30, 0.0))
    tensor = ParallelConfig(tensor=2)
    without = Roofline(shape("llama-3-8b"), free, tensor, IDEAL)
    work = Work.decode(8, 1000)
    two_a_layer_s = 32 * 2 * (4e-6 + 2 * (1 / 2) * 8 * 4096 * 2 / 450e9)
    difference_s = roofline(parallel=tensor).seconds(work) - without.seconds(work)
    assert difference_s == pytest.approx(two_a_layer_s, rel=1e-6)


def test_ranks_on_several_nodes_talk_over_the_slower_link() -> None:
    work = Work.prompts(1024)
    inside = roofline("llama-3-70b", parallel=ParallelConfig(tensor=8)).seconds(work)
    outside = roofline("llama-3-70b", parallel=ParallelConfig(tensor=16)).seconds(work)
    assert outside > inside


def test_stages_add_up_and_the_head_makes_the_last_one_heavy() -> None:
    at = roofline(parallel=ParallelConfig(pipeline=4))
    work = Work.decode(8, 1000)
    stages_s = at.stage_seconds(work)
    assert sum(stages_s) == pytest.approx(at.seconds(work))
    assert stages_s[3] > stages_s[0] == stages_s[1]


def test_overheads_are_counted_by_layer_and_by_sequence() -> None:
    work = Work.decode(8, 1000)
    slow = replace(IDEAL, layer_s=1e-3, sequence_s=1e-4)
    added_s = roofline(calibration=slow).seconds(work) - roofline().seconds(work)
    assert added_s == pytest.approx(32 * 1e-3 + 8 * 1e-4)


def test_few_tokens_read_only_the_experts_that_they_chose() -> None:
    one = roofline("mixtral-8x7b", "h200").seconds(Work.decode(1, 0))
    many = roofline("mixtral-8x7b", "h200").seconds(Work.decode(64, 0))
    assert many / one == pytest.approx(46.7 / 12.9, rel=0.05)


@pytest.mark.parametrize("kind", ["v100-16", "a100-80", "h100", "l4", "cpu"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_more_sequences_or_context_never_take_less(kind: str, tensor: int) -> None:
    profile = cost_of("llama-3-8b", GroupConfig(kind, ParallelConfig(tensor=tensor))).profile
    rows = [[profile.decode_s(b, c) for c in (1, 100, 1000, 9000)] for b in (1, 7, 64, 600)]
    assert all(row == sorted(row) for row in rows)
    assert all(list(column) == sorted(column) for column in zip(*rows, strict=True))
    prompts = [profile.prefill_s(length) for length in (1, 10, 100, 1000, 8192, 10000)]
    assert prompts == sorted(prompts)


def test_a_cost_has_bytes_shares_and_loading_times_of_its_cut() -> None:
    parallel = ParallelConfig(2, 2)
    cost = cost_of("llama-3-8b", GroupConfig("h100", parallel))
    assert cost.weight_bytes == weight_bytes(shape("llama-3-8b"), parallel)
    assert cost.kv_token_bytes == (32_768, 32_768)
    assert sum(cost.stage_shares) == pytest.approx(1.0)
    assert cost.load_s == max(cost.weight_bytes) / 50e9
    assert cost.fetch_s == 2 * sum(cost.weight_bytes) / 6e9
    assert cost.profile.block_bytes == 16 * 32_768
    assert cost.profile.copy_s("host", "in", 10**9) < cost.profile.copy_s("disk", "in", 10**9)


def test_a_cut_that_heads_forbid_has_no_cost() -> None:
    costs = RooflineCost({"m": shape("llama-3-8b")}, {"h100": device("h100")})
    assert costs.cost("m", GroupConfig("h100", ParallelConfig(tensor=3))) is None
    assert costs.cost("m", GroupConfig("h100", ParallelConfig(pipeline=33))) is None


def test_unknown_models_and_devices_are_named() -> None:
    costs = RooflineCost({"m": shape("llama-3-8b")}, {"h100": device("h100")})
    with pytest.raises(ConfigError, match="model 'x' is not known; known: m"):
        costs.cost("x", GroupConfig("h100", ParallelConfig()))
    with pytest.raises(ConfigError, match="device type 'tpu' is not known; known: h100"):
        costs.cost("m", GroupConfig("tpu", ParallelConfig()))


def test_fitting_finds_the_constants_that_made_the_rows() -> None:
    true = Calibration(0.5, 0.8, 0.4, 80e-6, 50e-6)
    cuts = (ParallelConfig(), ParallelConfig(tensor=4))
    works = [Work.decode(b, c) for b in (1, 16, 128) for c in (100, 4000)]
    works += [Work.prompts(length) for length in (64, 1024, 8192)]
    rows = [(cut, work) for cut in cuts for work in works]

    def predicted_s(row: tuple[ParallelConfig, Work], tried: Calibration) -> float:
        return roofline(parallel=row[0], calibration=tried).seconds(row[1])

    found = fit(rows, predicted_s, lambda row: predicted_s(row, true))
    for name in ("matrix_efficiency", "memory_efficiency", "link_efficiency", "layer_s"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.01)


def test_fitting_needs_a_row_for_each_constant() -> None:
    with pytest.raises(ConfigError, match="1 rows were measured"):
        fit([1.0], lambda row, tried: row, lambda row: row)


def test_an_efficiency_above_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"calibration.memory_efficiency is 1.2"):
        Calibration(memory_efficiency=1.2)


def test_in_mixed_iterations_all_other_prompts_delay_a_request() -> None:
    at = roofline()
    loop = ClosedLoop(32, 4096, 128)
    mixed = loop_times(at, loop, 72 * GIB).tpot_s
    waves = loop_times(at, replace(loop, batching="prompts_first"), 72 * GIB).tpot_s
    alone_s = at.seconds(Work.decode(32, 4096 + 64))
    assert alone_s < waves < mixed
    prompts_s = 31 / 128 * at.seconds(Work.prompts(4096, 2)) / 2
    assert waves - alone_s == pytest.approx(prompts_s / 2)


def test_requests_that_do_not_fit_wait_and_do_not_slow_others() -> None:
    at = roofline()
    memory = 2 * 8_030_261_248 + 10 * (1000 + 50) * 131_072
    fits, waits = (loop_times(at, ClosedLoop(n, 1000, 100), memory) for n in (10, 40))
    assert waits.tpot_s == fits.tpot_s
    assert waits.ttft_s == pytest.approx(fits.ttft_s + 3 * (fits.ttft_s + 100 * fits.tpot_s))


def test_devices_are_found_in_any_spelling() -> None:
    assert device("A100-80GB") == device("a100_80") == device("a100")
    assert {"a100-40", "h100", "h200", "v100-32", "l4", "l40s", "b200"} <= set(device_names())
    with pytest.raises(ConfigError, match="no device is called 'tpu'"):
        device("tpu")


def test_a_device_can_be_like_another_with_more_memory() -> None:
    mine = device_from_mapping("big", {"like": "h100", "memory_bytes": 96 * GIB})
    assert mine == replace(device("h100"), name="big", memory_bytes=96 * GIB)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "mine.inside is None; bytes_per_s and latency_s are needed"),
        ({"like": "h100", "flops": 1}, "mine.flops is unknown; allowed: like, flops_per_s"),
        ({"like": "h100", "bytes_per_s": -1}, "mine.bytes_per_s is -1; a positive number"),
        ({"like": "h100", "inside": {"latency_s": 0}}, "mine.inside.bytes_per_s is missing"),
    ],
)
def test_a_wrong_key_of_a_device_is_named(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        device_from_mapping("mine", values)


def test_reckoning_imports_nothing_heavy() -> None:
    code = (
        "import sys, placement.cost.roofline, placement.catalog, placement.cost.profiled;"
        "print([m for m in ('torch', 'ray', 'grpc', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
