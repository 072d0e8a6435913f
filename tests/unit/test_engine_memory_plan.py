"""A device's memory is cut so that every model fits, and little is left over."""

from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.errors import ConfigError
from fabric.engine.memory_plan import ModelBytes, plan_memory
from fabric.engine.settings import ModelSettings, WorkerSettings

MEBI = 2**20
SMALL = ModelBytes("small", 3 * MEBI, 20_480)
LARGE = ModelBytes("large", 40 * MEBI + 1, 368_640)


def settings(*models: ModelBytes, **changes: object) -> WorkerSettings:
    hosted = tuple(ModelSettings(model=model.model, source="") for model in models)
    return replace(WorkerSettings(models=hosted, cache_dir=Path()), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kv_cache_bytes", [20_480, 400_000, 4 * MEBI, 4 * MEBI + 1])
@pytest.mark.parametrize("block_bytes", [20_480, 20_480 - 4, 1000])
def test_a_model_alone_has_exactly_the_blocks_that_fit_beside_its_weights(
    kv_cache_bytes: int, block_bytes: int
) -> None:
    model = replace(SMALL, block_bytes=block_bytes)
    memory = plan_memory(settings(model, kv_cache_bytes=kv_cache_bytes), [model])
    assert memory.blocks_per_slab == (kv_cache_bytes // block_bytes,)
    assert memory.num_slabs == memory.weight_slabs[0] + 1
    assert memory.weight_slabs[0] * memory.slab_bytes >= model.weight_bytes
    assert memory.slab_bytes % 4096 == 0


def test_without_a_budget_all_weights_fit_and_each_model_gets_a_slab_at_least() -> None:
    models = [SMALL, LARGE, replace(SMALL, model="other")]
    memory = plan_memory(settings(*models, kv_cache_bytes=16 * MEBI), models)
    kv_slabs = memory.num_slabs - sum(memory.weight_slabs)
    assert 0 <= kv_slabs * memory.slab_bytes - 16 * MEBI < memory.slab_bytes
    little = plan_memory(settings(*models, kv_cache_bytes=LARGE.block_bytes), models)
    assert little.num_slabs - sum(little.weight_slabs) == 3


def test_a_budget_is_for_weights_and_blocks_together() -> None:
    memory = plan_memory(settings(SMALL, LARGE, memory_bytes=64 * MEBI), [SMALL, LARGE])
    assert memory.num_slabs == 64 * MEBI // memory.slab_bytes
    assert [slabs * memory.slab_bytes for slabs in memory.weight_slabs] == [
        pytest.approx(model.weight_bytes, abs=memory.slab_bytes) for model in (SMALL, LARGE)
    ]


@pytest.mark.parametrize("other", [20_480, 23_040, 81_920, 360_448, 1000, 64])
def test_slabs_that_are_chosen_waste_little_whichever_model_has_them(other: int) -> None:
    models = [LARGE, replace(SMALL, block_bytes=other)]
    memory = plan_memory(settings(*models, kv_cache_bytes=512 * MEBI), models)
    for model, count in zip(models, memory.blocks_per_slab, strict=True):
        assert count >= 4
        assert memory.slab_bytes - count * model.block_bytes <= 0.05 * memory.slab_bytes
    assert memory.slab_bytes <= 16 * LARGE.block_bytes


def test_slabs_of_small_blocks_are_not_tiny_nor_large_beside_the_memory() -> None:
    models = [SMALL, replace(SMALL, model="other", block_bytes=5_120)]
    roomy = plan_memory(settings(*models, memory_bytes=512 * MEBI), models)
    assert 256 * 2**10 <= roomy.slab_bytes <= 2 * MEBI
    tight = plan_memory(settings(*models, memory_bytes=8 * MEBI), models)
    assert tight.num_slabs >= 8


def test_the_slabs_that_are_asked_for_are_rounded_up_to_pages() -> None:
    for models in ([SMALL], [SMALL, LARGE]):
        memory = plan_memory(settings(*models, slab_bytes=500_000), models)
        assert memory.slab_bytes == 503_808
        assert memory.blocks_per_slab[0] == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_cache_bytes": 100_000}, "kv_cache_bytes is 100000; one block of large needs 368640"),
        ({"slab_bytes": 100_000}, "slab_bytes is 100000; one block of large needs 368640"),
        (
            {"memory_bytes": 40 * MEBI, "slab_bytes": MEBI},
            "memory is 41943040, 40 slabs of 1048576 bytes; large needs 41943041 bytes for its "
            "weights and a slab for its KV",
        ),
        ({"memory_bytes": 2**37 + 2**30}, "at most 137438953472 are usable"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_there_and_what_is_needed(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_memory(settings(SMALL, LARGE, **changes), [SMALL, LARGE])


def test_weights_must_fit_beside_those_that_are_pinned() -> None:
    given = settings(SMALL, LARGE, memory_bytes=44 * MEBI, slab_bytes=MEBI)
    assert plan_memory(given, [SMALL, LARGE]).weight_slabs == (3, 41)
    first, second = given.models
    pinned = replace(given, models=(replace(first, pinned=True), second))
    with pytest.raises(ConfigError, match=r"large needs .*, 3145728 for pinned models and a slab"):
        plan_memory(pinned, [SMALL, LARGE])
