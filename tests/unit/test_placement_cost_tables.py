import json
from pathlib import Path

import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.profile import CopySpeed, Profile, ProfileSubject
from placement.catalog import device, shape
from placement.cost.aiconfigurator_rows import catalog_name, read_loop_rows
from placement.cost.aiconfigurator_table import entries_of
from placement.cost.alpaserve_table import read_alpaserve
from placement.cost.calibration import Calibration
from placement.cost.composite import Costs, CostSource
from placement.cost.iteration import Roofline, Work
from placement.cost.muxserve_table import read_muxserve
from placement.cost.profiled import ProfiledCost, calibrate, read_fabric_profile
from placement.cost.roofline import RooflineCost
from placement.cost.tables import TableCost
from placement.devices import GroupConfig

ONE = ParallelConfig()
HEADER = (
    "id,backend,model_path,system,mode,isl,osl,gemm_quant_mode,batch_size,tp_size,pp_size,"
    "silicon_ttft_ms,silicon_tpot_ms\n"
)


def profile_text(pipeline: int = 1, tensor: int = 1) -> str:
    subject = ProfileSubject(
        model="stories",
        source="folder",
        dtype="float32",
        device="cpu",
        processor="a processor",
        num_threads=1,
        pipeline=pipeline,
        tensor=tensor,
        block_size=16,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=512,
        version="0",
    )
    copies = (CopySpeed("host", "out", 5e9, 1e-5),)
    profile = Profile(((1, 0.001), (64, 0.004)), ((1, 32, 0.001), (8, 32, 0.002)), copies)
    return Profile(profile.prefill, profile.decode, copies, 20480, subject).to_json()


def test_times_of_a_profile_stay_as_they_were_measured() -> None:
    entry = read_fabric_profile(profile_text(), shape("stories260k"), device("cpu"))
    assert (entry.model, str(entry.config)) == ("stories260k", "cpu pp1 tp1")
    assert entry.cost.profile.decode_s(8, 32) == 0.002
    assert entry.cost.profile.copy_s("host", "out", 0) == 1e-5
    assert entry.cost.weight_bytes == (4 * 260_032,)
    assert entry.cost.overhead_s == 0.0


def test_copies_that_were_not_measured_are_reckoned() -> None:
    entry = read_fabric_profile(profile_text(), shape("stories260k"), device("cpu"))
    assert entry.cost.profile.copy_s("disk", "in", 10**9) < 2.0


def test_a_profile_without_a_subject_is_refused() -> None:
    text = Profile.flat(1e-3, 1e-5).to_json()
    with pytest.raises(ConfigError, match="subject is missing"):
        read_fabric_profile(text, shape("stories260k"), device("cpu"))


def test_a_profile_calibrates_the_roofline_that_made_it() -> None:
    true = Calibration(0.4, 0.7, layer_s=40e-6, sequence_s=90e-6)
    at = Roofline(shape("llama-3-8b"), device("a100-80"), ONE, true)
    profile = Profile(
        tuple((n, at.seconds(Work.prompts(n))) for n in (16, 256, 4096)),
        tuple((b, c, at.seconds(Work.decode(b, c))) for b in (1, 16, 64) for c in (64, 2048)),
    )
    found = calibrate(profile, at.shape, at.device, ONE)
    assert found.matrix_efficiency == pytest.approx(0.4, rel=0.01)
    assert found.memory_efficiency == pytest.approx(0.7, rel=0.02)


def test_stages_of_an_alpaserve_profile_become_shares() -> None:
    rows = [{"dp": 1, "op": 2, "pp": 2, "latency": {"1": [0.1, 0.3]}, "weight_mem": [4e9, 6e9]}]
    (entry,) = read_alpaserve(json.dumps({"bert": rows}), device("v100"), 2048)
    assert entry.config == GroupConfig("v100-16", ParallelConfig(2, 2))
    assert entry.cost.stage_shares == pytest.approx((0.25, 0.75))
    assert entry.cost.profile.prefill_s(2048) == pytest.approx(0.4)
    assert entry.cost.weight_bytes == (4_000_000_000, 6_000_000_000)


def test_of_a_configuration_measured_twice_the_faster_counts() -> None:
    rows = [
        {"dp": 1, "op": 1, "pp": 1, "latency": {"1": [seconds]}, "weight_mem": [1e9]}
        for seconds in (0.3, 0.2, 0.4)
    ]
    (entry,) = read_alpaserve(json.dumps({"bert": rows}), device("v100"), 2048)
    assert entry.cost.profile.prefill_s(2048) == 0.2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pp": 0}, r"bert.0.pp is 0"),
        ({"latency": {"1": [0.1]}}, r"bert.0.latency.1 is \[0.1\]; 2 stages are needed"),
        ({"latency": {"x": [0.1, 0.1]}}, r"the key 'x'"),
        ({"latency": {"2": [0.1, 0.1]}}, r"bert.0.latency has no batch of 1"),
        ({"weight_mem": [1e9, "2"]}, r"bert.0.weight_mem is '2'"),
    ],
)
def test_a_wrong_value_of_an_alpaserve_profile_is_named(change: dict, said: str) -> None:
    row = {"dp": 1, "op": 1, "pp": 2, "latency": {"1": [0.1, 0.1]}, "weight_mem": [1e9, 1e9]}
    with pytest.raises(ConfigError, match=said):
        read_alpaserve(json.dumps({"bert": [row | change]}), device("v100"), 2048)


def test_muxserve_times_count_on_whole_devices_where_memory_sufficed() -> None:
    cells = {"32": {"prefill": 20, "decoding": 18}, "64": {"prefill": 22, "decoding": 19}}
    full = {"32": {"prefill": 90, "decoding": 30}, "64": {"prefill": -1, "decoding": -1}}
    table = {"llama-7b": {"1": {"100": {"1": cells, "2": cells, "4": full}, "30": {"1": full}}}}
    shapes = {"llama-7b": shape("llama-7b")}
    (entry,) = read_muxserve(json.dumps(table), shapes, device("a100-80"))
    assert entry.config == GroupConfig("a100-80", ONE)
    assert entry.cost.profile.decode == (
        (1, 32, 0.018),
        (1, 64, 0.019),
        (2, 32, 0.018),
        (2, 64, 0.019),
    )
    assert entry.cost.profile.prefill == ((32, 0.02), (64, 0.022), (128, 0.022))
    assert entry.cost.kv_token_bytes == (524_288,)


def test_a_muxserve_table_of_another_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"table: llama-7b.1 is"):
        read_muxserve('{"llama-7b": {"1": 3}}', {"llama-7b": shape("llama-7b")}, device("a100-80"))
    with pytest.raises(ConfigError, match="table: Expecting"):
        read_muxserve("{", {}, device("a100-80"))


def test_rows_of_loops_are_read_and_others_counted() -> None:
    text = HEADER + (
        "a,vllm,meta-llama/Llama-3.1-8B-Instruct,h100_sxm,agg,1024,128,fp8,8,2,1,50,7\n"
        "b,vllm,deepseek-ai/DeepSeek-R1,h100_sxm,agg,1024,128,fp8,8,2,1,50,7\n"
        "c,vllm,meta-llama/Llama-3.1-70B,h100_sxm,disagg,1024,128,fp8,,,,50,7\n"
    )
    found = read_loop_rows(text)
    (row,) = found.rows
    assert (row.shape.name, row.shape.weight_bits, row.device) == ("llama-3.1-8b", 8, "h100")
    assert (row.tpot_s, row.ttft_s, row.loop.concurrency) == (0.007, 0.05, 8)
    assert sum(number for _, number in found.left_out) == 2


def test_a_wrong_row_of_loops_is_named() -> None:
    row = "a,vllm,x/Llama-3.1-8B,h100_sxm,agg,many,128,fp8,8,2,1,50,7\n"
    with pytest.raises(ConfigError, match="row a: invalid literal"):
        read_loop_rows(HEADER + row)
    with pytest.raises(ConfigError, match="column backend is missing"):
        read_loop_rows("id\n1\n")


def test_owners_tuning_and_precision_are_no_part_of_a_models_name() -> None:
    assert catalog_name("nvidia/Llama-3.1-8B-Instruct-FP8") == "llama-3.1-8b"
    assert catalog_name("Qwen/Qwen3-32B") == "qwen3-32b"


def test_a_roofline_is_bent_to_a_configurations_loops() -> None:
    rows = "".join(
        f"{n},vllm,x/Llama-3.1-8B,h100_sxm,agg,1024,1024,,{b},1,1,50,{tpot}\n"
        for n, (b, tpot) in enumerate([(1, 9.0), (8, 10.0), (32, 14.0)])
    )
    (entry,) = entries_of(read_loop_rows(HEADER + rows).rows, {"h100": device("h100")})
    assert entry.model == "llama-3.1-8b"
    # As measured, and not 6.5 ms as the device could.
    assert entry.cost.profile.decode_s(1, 1536) == pytest.approx(0.009, rel=0.1)


def test_the_first_source_that_knows_a_cost_is_believed() -> None:
    name = "stories260k"
    measured = read_fabric_profile(profile_text(), shape(name), device("cpu"))
    reckoned = RooflineCost({name: shape(name)}, {"cpu": device("cpu")})
    costs = Costs(
        [
            CostSource("measured", ProfiledCost([measured])),
            CostSource("table", TableCost([])),
            CostSource("roofline", reckoned),
        ]
    )
    two = GroupConfig("cpu", ParallelConfig(tensor=2))
    assert costs.source(name, GroupConfig("cpu", ONE)) == "measured"
    assert costs.cost(name, GroupConfig("cpu", ONE)) is measured.cost
    assert costs.source(name, two) == "roofline"
    assert costs.cost(name, two) == reckoned.cost(name, two)
    assert costs.source(name, GroupConfig("cpu", ParallelConfig(tensor=16))) is None


def test_a_model_that_no_source_knows_is_an_error_that_asks_each() -> None:
    costs = Costs([CostSource("measured", TableCost([])), CostSource("roofline", TableCost([]))])
    with pytest.raises(ConfigError, match=r"measured: model 'x'.*; roofline: model 'x'"):
        costs.cost("x", GroupConfig("cpu", ONE))


def test_published_stages_become_costs(data_path: Path) -> None:
    path = data_path / "alpaserve/profiling_szu_motivation.json"
    if not path.exists():
        pytest.skip(f"no profile at {path}")
    entries = read_alpaserve(path.read_text(), device("rtx-3090"), 512)
    costs = TableCost(entries)
    cost = costs.cost("bert-6.7b", GroupConfig("rtx-3090", ParallelConfig(pipeline=2)))
    assert len(entries) == 23
    assert cost is not None
    assert cost.profile.prefill_s(512) == pytest.approx(0.11975 + 0.12290, rel=1e-3)
    assert cost.weight_bytes == (6_867_795_968, 6_863_687_680)


def test_published_prefill_and_decode_become_costs(data_path: Path) -> None:
    path = data_path / "muxserve/a100_llama_profile.json"
    if not path.exists():
        pytest.skip(f"no table at {path}")
    shapes = {name: shape(name) for name in ("llama-7b", "llama-13b", "llama-30b", "llama-65b")}
    costs = TableCost(read_muxserve(path.read_text(), shapes, device("a100-80")))
    cost = costs.cost("llama-13b", GroupConfig("a100-80", ONE))
    assert cost is not None
    assert cost.profile.decode_s(32, 256) == pytest.approx(0.02656)
    assert cost.profile.prefill_s(512) == pytest.approx(0.075775)
    assert costs.cost("llama-65b", GroupConfig("a100-80", ONE)) is None


def test_published_loops_become_costs(data_path: Path) -> None:
    path = data_path / "aiconfigurator/silicon_rows.csv"
    if not path.exists():
        pytest.skip(f"no rows at {path}")
    rows = [row for row in read_loop_rows(path.read_text()).rows if row.device == "h200"]
    rows = [row for row in rows if row.shape.name == "llama-3.1-70b" and row.parallel.tensor == 8]
    (entry,) = entries_of(rows, {"h200": device("h200")})
    assert 0.004 < entry.cost.profile.decode_s(8, 1024) < 0.010
