import pytest

from fabric.core.errors import ConfigError
from placement.catalog.devices import device
from placement.parallelize.costs import Rates
from placement.parallelize.graph import Workload
from placement.parallelize.intra import IntraProblem
from placement.parallelize.intra_costs import IntraCosts
from placement.parallelize.stacks import Stack
from placement.parallelize.stage import MeshShape, Phase, StageCost
from placement.shape import ModelShape

A100 = device("a100")
PHASES = (Phase("prefill", 1024, 1, 512, 1.0), Phase("decode", 16, 16, 1024, 8.0))
MESH = MeshShape(1, 4)


def model(is_tied: bool = False) -> ModelShape:
    return ModelShape("model", 6, 1024, 2816, 8, 2, 128, 32000, 4096, is_tied=is_tied)


def costs(**changes: object) -> IntraCosts:
    return IntraCosts(model(), A100, Workload(PHASES, 10_000), **changes)  # type: ignore[arg-type]


def exact(option: StageCost, stack: Stack, is_tied: bool = False) -> float:
    workload = Workload(PHASES, 10_000)
    asked = IntraProblem.of(model(is_tied), Rates(A100), MESH, workload, stack)
    return asked.solve(option.bytes).cost.seconds


def test_options_get_faster_as_they_get_larger() -> None:
    options = costs().options(0, 6, MESH)
    assert len(options) > 2
    assert [each.bytes for each in options] == sorted({each.bytes for each in options})
    seconds = [each.seconds for each in options]
    assert seconds == sorted(set(seconds), reverse=True)


@pytest.mark.parametrize("is_tied", [False, True])
def test_options_of_the_whole_model_are_exact(is_tied: bool) -> None:
    found = IntraCosts(model(is_tied), A100, Workload(PHASES, 10_000))
    for option in found.options(0, 6, MESH):
        assert option.seconds == pytest.approx(exact(option, Stack(6), is_tied), rel=1e-9)


def test_smallest_and_fastest_options_of_a_stage_are_exact_and_others_nearly() -> None:
    options = costs().options(0, 4, MESH)
    best = [exact(option, Stack(4, has_head=False)) for option in options]
    assert options[0].seconds == pytest.approx(best[0], rel=1e-9)
    assert options[-1].seconds == pytest.approx(best[-1], rel=1e-9)
    for option, seconds in zip(options, best, strict=True):
        assert seconds * (1 - 1e-9) <= option.seconds <= seconds * 1.015


def test_seconds_of_phases_are_those_of_the_weighted_sum() -> None:
    for option in costs().options(1, 4, MESH):
        weighted = sum(
            phase.weight * seconds for phase, seconds in zip(PHASES, option.phase_s, strict=True)
        )
        assert option.seconds == pytest.approx(weighted)


def test_ends_of_the_model_make_a_stage_heavier() -> None:
    found = costs()
    middle, first, last = (found.options(*ends, MESH)[0] for ends in ((2, 4), (0, 2), (4, 6)))
    assert first.bytes > middle.bytes
    assert last.bytes > middle.bytes
    assert last.seconds > middle.seconds


def test_stages_of_as_many_middle_layers_cost_the_same() -> None:
    found = costs()
    assert found.options(1, 3, MESH) == found.options(2, 4, MESH)


def test_strategies_say_what_every_operator_does() -> None:
    names = [name for name, _ in costs().options(0, 6, MESH)[0].strategies]
    assert "embedding weights" in names
    assert "head (decode)" in names
    assert any(name.endswith("layers: qkv (prefill)") for name in names)


def test_no_options_where_nothing_fits() -> None:
    assert costs(memory_bytes=1000).options(0, 6, MESH) == ()


@pytest.mark.parametrize("ends", [(0, 6), (0, 3), (2, 5), (3, 6)])
def test_options_fit_the_memory(ends: tuple[int, int]) -> None:
    largest = costs().options(*ends, MESH)[-1].bytes
    options = costs(memory_bytes=largest - 1).options(*ends, MESH)
    assert options
    assert all(option.bytes < largest for option in options)


@pytest.mark.parametrize("ends", [(0, 7), (3, 3), (-1, 2)])
def test_layers_that_there_are_not_are_refused(ends: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="are none of the 6"):
        costs().options(*ends, MESH)


def test_mesh_without_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match="mesh is 0x4"):
        costs().options(0, 6, MeshShape(0, 4))
