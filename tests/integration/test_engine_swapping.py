"""Greedy tokens stay the same when all KV leaves the device after every iteration."""

import functools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.request import GenerationRequest
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import Generated
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import Tier
from fabric.scheduler.policies import PolicyConfig
from tests.integration.test_engine_exactness import STORIES_PROMPTS, requests, settings, tokens
from tests.integration.test_engine_exactness import alone as alone

MIB = 2**20
NUM_SHORT = 10
NUM_PROMPTS = 8
TIERS = {
    "host": {"host_bytes": 64 * MIB},
    "disk": {"disk_bytes": 64 * MIB},
    "little host, then disk": {"host_bytes": MIB // 4, "disk_bytes": 64 * MIB},
}


@contextmanager
def engine_with(
    parking: dict[str, object], build: Callable[[ParkingSettings], BuiltEngine]
) -> Iterator[BuiltEngine]:
    built = build(ParkingSettings(debug=True, **parking))  # type: ignore[arg-type]
    yield built
    report = built.scheduler.report()
    built.engine.close()
    assert report.num_free_blocks == report.num_blocks
    assert (report.num_host_blocks, report.num_disk_blocks) == (0, 0)
    assert report.num_failed_transfers == 0


def swap_at_every_step(
    built: BuiltEngine,
    wanted: list[GenerationRequest],
    cancelled: dict[str, int] | None = None,
    after_step: Callable[[], object] = list,
) -> dict[str, Generated]:
    """Run requests; all that run are swapped out after every iteration, some end in the middle."""
    results = {request.request_id: Generated() for request in wanted}
    for request in wanted:
        built.engine.add(request)
    num_steps = 0
    while built.engine.has_work:
        outputs = built.engine.step()
        after_step()
        num_steps += 1
        for output in outputs:
            results[output.request_id].append(output)
            # Only those that have got on: the others would never get anywhere.
            built.scheduler.preempt(output.request_id, swap=True)
        for name in [name for name, step in (cancelled or {}).items() if step == num_steps]:
            built.engine.cancel(name)
    return results


def stories(path: Path, parking: ParkingSettings, **changes: object) -> BuiltEngine:
    return build_engine(settings(path, parking=parking, preemption="swap", **changes))


@pytest.mark.parametrize(
    ("tier", "prefix_cache"),
    [("host", False), ("disk", True), ("little host, then disk", False)],
)
def test_swapping_everything_at_every_step_changes_no_token(
    stories_path: Path, alone: dict[str, list[int]], tier: str, prefix_cache: bool
) -> None:
    build = lambda parking: stories(stories_path, parking, prefix_cache=prefix_cache)  # noqa: E731
    with engine_with(TIERS[tier], build) as built:
        results = swap_at_every_step(built, requests(built, STORIES_PROMPTS[:NUM_PROMPTS]))
        assert tokens(results) == {name: alone[name] for name in results}
        report = built.scheduler.report()
        assert report.num_recomputed_tokens == 0
        assert report.swapped_in_bytes > 0
        assert report.num_preemptions >= NUM_PROMPTS * 60


@pytest.mark.parametrize("tier", ["host", "little host, then disk"])
def test_copies_that_take_50_ms_and_requests_that_end_meanwhile_change_no_other_token(
    stories_path: Path, alone: dict[str, list[int]], tier: str
) -> None:
    draw = random.Random(5)
    parking = {**TIERS[tier], "delay_s": 0.05, "num_copy_threads": 8}
    build = lambda parking: stories(stories_path, parking)  # noqa: E731
    with engine_with(parking, build) as built:
        wanted = [short(request) for request in requests(built, STORIES_PROMPTS)]
        names = draw.sample([request.request_id for request in wanted], 10)
        cancelled = {name: draw.randint(1, 60) for name in names}
        results = swap_at_every_step(built, wanted, cancelled)
        for name, result in results.items():
            generated = result.sequences[0].token_ids if 0 in result.sequences else []
            assert generated == alone[name][: len(generated)]
            if result.error is None:
                assert len(generated) == NUM_SHORT
        assert sum(result.error is not None for result in results.values()) > 3


def short(request: GenerationRequest) -> GenerationRequest:
    return replace(request, sampling=replace(request.sampling, max_tokens=NUM_SHORT))


def test_blocks_that_the_disk_has_changed_are_computed_again(
    stories_path: Path, alone: dict[str, list[int]]
) -> None:
    built = stories(stories_path, ParkingSettings(disk_bytes=64 * MIB))
    disk = built.engine._executor._worker._models[0]._tiers[Tier.DISK]  # type: ignore[attr-defined]
    wanted = [short(request) for request in requests(built, STORIES_PROMPTS[:NUM_PROMPTS])]
    # Not through O_DIRECT, which asks for aligned memory.
    with open(f"/proc/self/fd/{disk.fileno}", "r+b", buffering=0) as file:
        harm = functools.partial(os.pwrite, file.fileno(), bytes(4096), 0)
        results = swap_at_every_step(built, wanted, after_step=harm)
    for name, result in results.items():
        assert result.sequences[0].token_ids == alone[name][:NUM_SHORT]
    report = built.scheduler.report()
    assert report.num_failed_transfers > 0
    assert report.num_recomputed_tokens > 0
    assert report.num_free_blocks == report.num_blocks
    built.engine.close()


@pytest.mark.parametrize(
    ("policy", "swap"),
    [
        ("fcfs", "blocking"),
        ("mlfq", "proactive"),
        ("srw", "on_demand"),
    ],
)
def test_a_device_too_small_for_its_load_swaps_and_gives_the_same_tokens(
    stories_path: Path, alone: dict[str, list[int]], policy: str, swap: str
) -> None:
    build = lambda parking: stories(  # noqa: E731
        stories_path,
        parking,
        kv_cache_bytes=MIB // 2,
        swap=swap,
        max_num_seqs=8,
        policy=PolicyConfig(name=policy),  # type: ignore[arg-type]
    )
    with engine_with({"host_bytes": 64 * MIB}, build) as built:
        results = {request.request_id: Generated() for request in requests(built, STORIES_PROMPTS)}
        for request in requests(built, STORIES_PROMPTS):
            built.engine.add(request)
        while built.engine.has_work:
            for output in built.engine.step():
                results[output.request_id].append(output)
        assert tokens(results) == alone
        report = built.scheduler.report()
        assert report.swapped_out_bytes > 0
        assert (report.stall_s > 0) or swap != "blocking"
