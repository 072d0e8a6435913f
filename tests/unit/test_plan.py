import pytest

from fabric.config import FabricConfig, parse_config, parse_plan
from fabric.core.errors import ConfigError
from fabric.core.plan import GroupPlan, ModelShare, ParallelConfig, PlacementPlan
from fabric.core.plan_steps import PlanStep, StepKind, plan_steps, target_plan


def group(name: str, *models: str, options: str = "", instance: str = "") -> GroupPlan:
    shares = tuple(map(ModelShare, models))
    return GroupPlan(name, ParallelConfig(), shares, options, instance)


def plan(*groups: GroupPlan) -> PlacementPlan:
    return PlacementPlan(groups)


def steps(old: PlacementPlan, new: PlacementPlan) -> list[tuple[StepKind, str]]:
    return [(step.kind, step.group) for step in plan_steps(old, new, lambda _: 10)]


def test_a_plan_with_the_same_groups_takes_no_steps() -> None:
    old = plan(group("g0", "a", instance="g0-2"), group("g1", "b"))
    assert steps(old, plan(group("g1", "b"), group("g0", "a"))) == []


def test_new_groups_start_before_requests_are_sent_to_them_and_old_ones_leave() -> None:
    old = plan(group("g0", "a", "b"))
    new = plan(group("g1", "a"), group("g2", "b"))
    assert steps(old, new) == [
        (StepKind.START, "g1"),
        (StepKind.START, "g2"),
        (StepKind.SWITCH, ""),
        (StepKind.DRAIN, "g0"),
        (StepKind.REMOVE, "g0"),
    ]


def test_an_unchanged_group_stays_as_it_runs() -> None:
    old = plan(group("g0", "a", instance="g0-2"), group("g1", "b"))
    new = plan(group("g0", "a"), group("g1", "b", "a"))
    assert [found.running_name for found in target_plan(old, new).groups] == ["g0-2", "g1-2"]
    assert (StepKind.REMOVE, "g0-2") not in steps(old, new)


def test_a_changed_option_is_another_group_and_runs_under_another_name() -> None:
    old = plan(group("g0", "a"))
    new = plan(group("g0", "a", options="kv_cache: 1"))
    assert steps(old, new)[0] == (StepKind.START, "g0-2")
    back = target_plan(old, new)
    assert steps(back, old)[0] == (StepKind.START, "g0")


def test_no_group_takes_the_name_of_another_one_of_the_plan() -> None:
    old = plan(group("g0", "a"))
    new = plan(group("g0", "b"), group("g0-2", "c"))
    names = [found.running_name for found in target_plan(old, new).groups]
    assert names == ["g0-3", "g0-2"]


def test_the_bytes_to_load_are_those_of_models_that_don_t_start_cold() -> None:
    cold = ModelShare("c", starts="cold")
    new = GroupPlan("g1", ParallelConfig(2, 1), (ModelShare("a"), ModelShare("b"), cold))
    sizes = {"a": 2_500_000}
    first = plan_steps(plan(), plan(new), sizes.get)[0]
    assert first == PlanStep(
        StepKind.START,
        "g1",
        "start g1 with a, b, c on 2 devices: 2.5 MB of weights; the size of b is not known yet",
        2_500_000,
    )


def test_a_group_that_is_only_removed_leaves_nothing_to_start() -> None:
    old = plan(group("g0", "a"), group("g1", "a"))
    found = plan_steps(old, plan(group("g0", "a")), lambda _: 10)
    assert found[0].description == "send requests no longer to g1"
    assert [step.kind for step in found] == [StepKind.SWITCH, StepKind.DRAIN, StepKind.REMOVE]


PLAN = """
models: [{id: a, source: /models/a}, {id: b, source: /models/b}]
groups:
  - {name: g0, models: [a, {id: b, weight: 2}], parallel: {tensor: 2}}
"""


def config() -> FabricConfig:
    tree = {
        "models": [{"id": "x", "source": "/models/x"}],
        "groups": [{"name": "g9", "models": ["x"]}],
        "router": {"port": 7},
    }
    return parse_config(tree, "file")


def test_a_plan_replaces_models_and_groups_and_nothing_else() -> None:
    planned = parse_plan(config(), PLAN, "plan")
    assert planned.router.port == 7
    assert planned.plan().sources == (("a", "/models/a"), ("b", "/models/b"))
    (found,) = planned.plan().groups
    assert found.parallel == ParallelConfig(1, 2)
    assert found.models == (ModelShare("a"), ModelShare("b", weight=2.0))


@pytest.mark.parametrize(
    ("before", "after"),
    [("/models/b", "/models/c"), ("tensor: 2", "tensor: 2, layer_split: [3]"), ("[a,", "[")],
)
def test_groups_differ_by_all_that_their_configuration_says(before: str, after: str) -> None:
    text = PLAN.replace(before, after)
    text = text if before != "[a," else text.replace("{id: a, source: /models/a}, ", "")
    assert parse_plan(config(), text, "plan").plan() != parse_plan(config(), PLAN, "plan").plan()


def test_what_only_routers_go_by_changes_no_group() -> None:
    text = PLAN.replace("/models/b", "/models/b, objectives: {ttft_s: 1}")
    assert parse_plan(config(), text, "plan").plan() == parse_plan(config(), PLAN, "plan").plan()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLAN + "router: {port: 1}", "plan: router: not a part of a plan"),
        ("groups: []", "plan: models: Field required"),
        (PLAN.replace("weight", "wait"), "groups.0.models.1.wait"),
        (PLAN.replace("[a,", "[q,"), "'g0' hosts 'q'"),
        ("- 1", "plan: holds list; a mapping is needed"),
        ("models: [", "plan: not YAML"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_key_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_plan(config(), text, "plan")
    assert words in caught.value.message


def test_a_group_alone_keeps_only_its_models() -> None:
    text = PLAN.replace("groups:", "groups:\n  - {name: g1, models: [b]}")
    alone = parse_plan(config(), text, "plan").only("g1")
    assert [model.id for model in alone.models] == ["b"]
    assert parse_config(alone.model_dump(mode="json"), "again") == alone
