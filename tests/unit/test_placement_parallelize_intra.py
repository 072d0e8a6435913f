from itertools import pairwise, product

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.catalog.shapes import shape
from placement.cost.sizes import kv_token_bytes, weight_bytes
from placement.devices import DeviceType, Link
from placement.parallelize.costs import Rates
from placement.parallelize.elimination import minimize
from placement.parallelize.factors import Factor, Problem, Variable
from placement.parallelize.graph import Workload
from placement.parallelize.intra import IntraPlan, IntraProblem
from placement.parallelize.milp import solve_milp
from placement.parallelize.stacks import Stack
from placement.parallelize.stage import MeshShape, Phase
from placement.shape import ModelShape

DEVICE = DeviceType(
    name="prototype",
    flops_per_s=312e12,
    bytes_per_s=2.0e12,
    memory_bytes=80 << 30,
    inside=Link(200e9, 10e-6),
    outside=Link(40e9, 20e-6),
    devices_per_node=4,
    host_bytes_per_s=25e9,
    disk_bytes_per_s=3e9,
    price_per_hour=1.0,
)
ROW, GRID = MeshShape(1, 4), MeshShape(2, 2)
PREFILL = Phase("prefill", 512, 1, 512, 1.0)
DECODE = Phase("decode", 16, 16, 1024, 8.0)
TINY = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_model_len": 4096,
}
DENSE = ModelShape("dense", num_layers=3, **TINY)
TIED = ModelShape("tied", num_layers=3, is_tied=True, is_gated=False, **TINY)
EXPERTS = ModelShape("experts", num_layers=3, num_experts=4, num_active_experts=2, **TINY)


def problem(
    model: ModelShape, mesh: MeshShape, phases: tuple[Phase, ...], stack: Stack, kv_tokens: int = 0
) -> IntraProblem:
    return IntraProblem.of(model, Rates(DEVICE), mesh, Workload(phases, kv_tokens), stack)


def strategy(plan: IntraPlan, operator: str) -> str:
    """What most layers do with an operator."""
    rows = [
        (int(name.split()[0]), what)
        for name, what in plan.cost.strategies
        if f": {operator} (" in name
    ]
    return max(rows)[1]


def llama_plan(mesh: MeshShape, num_tokens: int, share: float | None) -> IntraPlan:
    phase = Phase("tokens", num_tokens, num_tokens if num_tokens < 64 else 1, 1024, 1.0)
    asked = problem(shape("llama-3-8b"), mesh, (phase,), Stack(32))
    return asked.solve(None if share is None else int(asked.min_bytes() * share))


@pytest.mark.parametrize("model", [DENSE, TIED, EXPERTS], ids=lambda model: model.name)
@pytest.mark.parametrize(
    ("mesh", "num_layers", "shares"), [(ROW, 2, (1.0, 1.1, 1.3)), (GRID, 1, (1.2,))], ids=str
)
def test_template_and_milp_agree_within_a_budget(
    model: ModelShape, mesh: MeshShape, num_layers: int, shares: tuple[float, ...]
) -> None:
    asked = problem(model, mesh, (PREFILL,), Stack(num_layers), kv_tokens=10_000)
    for share in shares:
        budget = int(asked.min_bytes() * share)
        ours, highs = asked.solve(budget, "template"), asked.solve(budget, "milp")
        assert highs.is_optimal
        assert ours.cost.seconds == pytest.approx(highs.cost.seconds, rel=1e-9)
        assert ours.cost.bytes <= budget


@pytest.mark.parametrize("model", [DENSE, EXPERTS], ids=lambda model: model.name)
def test_template_and_milp_agree_on_two_phases_of_one_layout(model: ModelShape) -> None:
    asked = problem(model, ROW, (PREFILL, DECODE), Stack(1), kv_tokens=20_000)
    budget = int(asked.min_bytes() * 1.2)
    ours, highs = asked.solve(budget, "template"), asked.solve(budget, "milp")
    assert highs.is_optimal
    assert ours.cost.seconds == pytest.approx(highs.cost.seconds, rel=1e-9)


@pytest.mark.parametrize(("mesh", "num_layers"), [(MeshShape(1, 1), 3), (ROW, 3), (GRID, 1)])
@pytest.mark.parametrize("model", [DENSE, TIED, EXPERTS], ids=lambda model: model.name)
def test_all_three_agree_where_memory_is_free(
    model: ModelShape, mesh: MeshShape, num_layers: int
) -> None:
    asked = problem(model, mesh, (PREFILL,), Stack(num_layers))
    solvers = ("elimination", "template", "milp")
    seconds = [asked.solve(None, solver).cost.seconds for solver in solvers]
    assert seconds == pytest.approx([seconds[0]] * 3, rel=1e-9)


def test_elimination_and_template_agree_on_two_phases_of_one_layout() -> None:
    asked = problem(DENSE, ROW, (PREFILL, DECODE), Stack(3))
    seconds = asked.solve(None, "elimination").cost.seconds
    assert asked.solve(None, "template").cost.seconds == pytest.approx(seconds, rel=1e-9)


def test_elimination_says_that_it_knows_no_budget() -> None:
    asked = problem(DENSE, ROW, (PREFILL,), Stack(3))
    with pytest.raises(ConfigError, match="Use the template solver"):
        asked.solve(asked.min_bytes(), "elimination")


def test_template_agrees_with_milp_on_a_stage_from_the_middle() -> None:
    asked = problem(DENSE, ROW, (PREFILL,), Stack(3, has_embedding=False, has_head=False))
    budget = int(asked.min_bytes() * 1.2)
    ours, highs = asked.solve(budget, "template"), asked.solve(budget, "milp")
    assert ours.cost.seconds == pytest.approx(highs.cost.seconds, rel=1e-9)


def test_phases_seconds_add_up_by_weight() -> None:
    plan = problem(DENSE, ROW, (PREFILL, DECODE), Stack(2)).solve()
    prefill_s, decode_s = plan.cost.phase_s
    weighted = PREFILL.weight * prefill_s + DECODE.weight * decode_s
    assert plan.cost.seconds == pytest.approx(weighted, rel=1e-12)


def test_one_layout_for_both_phases_costs_no_less_than_one_for_each() -> None:
    both = problem(DENSE, ROW, (PREFILL, DECODE), Stack(3))
    budget = int(both.min_bytes() * 1.4)
    alone = [problem(DENSE, ROW, (phase,), Stack(3)) for phase in (PREFILL, DECODE)]
    least = sum(asked.solve(budget).cost.seconds for asked in alone)
    assert both.solve(budget).cost.seconds >= least * (1 - 1e-9)


def test_more_memory_never_costs_time() -> None:
    asked = problem(DENSE, GRID, (PREFILL,), Stack(3))
    shares = np.linspace(1.0, 4.0, 13)
    seconds = [asked.solve(int(asked.min_bytes() * share)).cost.seconds for share in shares]
    assert all(later <= earlier for earlier, later in pairwise(seconds))


def test_budget_below_the_least_says_how_many_bytes_are_missing() -> None:
    asked = problem(DENSE, ROW, (PREFILL,), Stack(3))
    short = asked.min_bytes() - 1000
    with pytest.raises(ConfigError, match=rf"at least {asked.min_bytes()} .* 1000 bytes short"):
        asked.solve(short)


def test_least_bytes_are_those_of_the_fabrics_own_shards() -> None:
    model, config = shape("llama-3-8b"), ParallelConfig(1, 4)
    asked = problem(model, ROW, (DECODE,), Stack(32), kv_tokens=4096)
    kv_bytes = 4096 * kv_token_bytes(model, config)[0]
    assert asked.min_bytes() == weight_bytes(model, config)[0] + kv_bytes


def test_kv_heads_that_devices_share_are_held_by_each() -> None:
    # KV by sequences would need no copies, but a single prompt can't be cut so.
    asked = problem(DENSE, MeshShape(1, 8), (PREFILL,), Stack(1, False, False), kv_tokens=1024)
    bare = problem(DENSE, MeshShape(1, 8), (PREFILL,), Stack(1, False, False))
    assert asked.min_bytes() - bare.min_bytes() == 1024 * 2 * 1 * 128 * 2


def test_tied_embedding_is_held_once() -> None:
    tied = problem(TIED, ROW, (PREFILL,), Stack(1)).min_bytes()
    first = problem(TIED, ROW, (PREFILL,), Stack(1, has_head=False)).min_bytes()
    assert tied - first == TIED.hidden_size * 2


def test_small_batches_get_megatrons_tensor_parallelism() -> None:
    plan = llama_plan(ROW, 8, 1.05)
    assert strategy(plan, "qkv") == strategy(plan, "up") == "output"
    assert strategy(plan, "attention") == "heads"
    assert strategy(plan, "o") == strategy(plan, "down") == "contraction + all-reduce"


def test_with_memory_free_tokens_are_cut_and_weights_are_whole() -> None:
    plan = llama_plan(ROW, 512, None)
    operators = ("norm 1", "qkv", "o", "norm 2", "up", "down")
    assert {strategy(plan, operator) for operator in operators} == {"tokens"}


def test_without_memory_to_spare_the_same_tokens_get_tensor_parallelism() -> None:
    plan = llama_plan(ROW, 512, 1.05)
    assert strategy(plan, "qkv") == strategy(plan, "up") == "output"
    assert strategy(plan, "o") == strategy(plan, "down") == "contraction + all-reduce"


def test_many_tokens_without_memory_to_spare_get_sequence_parallelism() -> None:
    plan = llama_plan(ROW, 8192, 1.05)
    assert strategy(plan, "qkv") == strategy(plan, "up") == "output"
    assert strategy(plan, "o") == strategy(plan, "down") == "contraction + reduce-scatter"
    assert strategy(plan, "norm 1") == strategy(plan, "norm 2") == "tokens"


@pytest.mark.parametrize("num_tokens", [2048, 8192])
def test_two_by_four_cuts_a_weight_by_output_and_by_contraction(num_tokens: int) -> None:
    plan = llama_plan(MeshShape(2, 4), num_tokens, 1.05)
    assert strategy(plan, "o") == "slow: output; fast: contraction + reduce-scatter"
    assert strategy(plan, "norm 1") == "slow: replicate; fast: tokens"


def test_two_by_four_sums_few_tokens_within_nodes_before_between_them() -> None:
    plan = llama_plan(MeshShape(2, 4), 512, 1.05)
    summed = "slow: contraction + all-reduce; fast: contraction + reduce-scatter"
    assert strategy(plan, "o") == strategy(plan, "down") == summed


@pytest.mark.parametrize("seed", range(5))
def test_elimination_and_milp_find_the_least_of_random_factors(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = {"a": 3, "b": 2, "c": 4, "d": 3}
    variables = {name: Variable(name, ("x",) * size) for name, size in sizes.items()}
    pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]
    factors = tuple(Factor(pair, random.random([sizes[name] for name in pair])) for pair in pairs)
    asked = Problem(variables, factors)
    every = (
        dict(zip(sizes, values, strict=True)) for values in product(*map(range, sizes.values()))
    )
    least = min(asked.seconds(each) for each in every)
    assert asked.seconds(minimize(asked)) == pytest.approx(least)
    assert solve_milp(asked, None, 10.0).seconds == pytest.approx(least)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((), "one or two"),
        ((PREFILL, PREFILL), "one or two"),
        ((Phase("prefill", 4, 5, 0, 1.0),), "num_sequences is 5"),
        ((Phase("prefill", 4, 1, -1, 1.0),), "context is -1"),
        ((Phase("prefill", 4, 1, 0, 0.0),), "weight 0.0"),
    ],
)
def test_phases_without_sense_are_refused(phases: tuple[Phase, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        problem(DENSE, ROW, phases, Stack(1))
