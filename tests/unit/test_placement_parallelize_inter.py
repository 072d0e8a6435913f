"""Cutting a model into pipeline stages: every cut that is worth having, and no other."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.devices import Link
from placement.parallelize.inter import PipelineSpace, parallelize, submeshes
from placement.parallelize.stage import MeshShape, Phase, StageCost
from placement.parallelize.stages_split import equal_layers, slicing_gain
from placement.parallelize.stages_transfer import Transfer, activation_transfer
from placement.shape import ModelShape

ONE = MeshShape(1, 1)
INSIDE, OUTSIDE = Transfer((0.25,), 0.25), Transfer((0.5,), 0.5)


@dataclass
class Decoder:
    """Equal layers between an embedding and a head; more devices are faster, not in proportion."""

    num_layers: int
    head_layers: float = 2.0
    embedding_layers: float = 0.0

    def options(self, first, end, mesh):
        work = end - first
        work += self.embedding_layers * (first == 0)
        work += self.head_layers * (end == self.num_layers)
        devices = mesh.num_devices
        slow_s = work / devices + (end - first) * 0.125 * (devices > 1) * mesh.slow
        sharded = StageCost(slow_s, (slow_s,), int(64 * work / devices))
        fast_s = work / devices + (end - first) * 0.0625 * (devices > 1) * mesh.slow
        return (StageCost(fast_s, (fast_s,), int(64 * work)), sharded)


class Irregular:
    """Random options of every range, the ranges that fit nowhere among them."""

    def __init__(self, num_layers, seed):
        self.num_layers = num_layers
        self._seed = seed

    def options(self, first, end, mesh):
        draw = random.Random(f"{self._seed}/{first}/{end}/{mesh}")
        times = (draw.randint(1, 12) / 4 for _ in range(draw.randint(0, 3)))
        return tuple(StageCost(s, (s,), draw.randint(1, 9)) for s in times)


def is_allowed(device: int, mesh: MeshShape, space: PipelineSpace) -> bool:
    size, node = mesh.num_devices, space.devices_per_node
    if size > node:
        return device % node == 0
    return device // node == (device + size - 1) // node


def all_pipelines(costs, space, first=0, device=0) -> Iterator[list[tuple[float, int]]]:
    """Seconds and bytes of the stages of each pipeline that there is."""
    if first == costs.num_layers and device == space.num_devices:
        yield []
    for mesh in space.meshes or submeshes(space.num_devices, space.devices_per_node):
        after = device + mesh.num_devices
        if after > space.num_devices or not is_allowed(device, mesh, space):
            continue
        inside = device % space.devices_per_node
        receive = (space.inside if inside else space.outside) if first else Transfer()
        for end in range(first + 1, costs.num_layers + 1):
            for cost in costs.options(first, end, mesh):
                for rest in all_pipelines(costs, space, end, after):
                    yield [(cost.seconds + receive.seconds, cost.bytes), *rest]


def brute_front(costs, space) -> set[tuple[float, float, int]]:
    points = set()
    for stages in all_pipelines(costs, space):
        times, sizes = zip(*stages, strict=True)
        if len(stages) <= (space.max_stages or 99) and max(sizes) <= (space.memory_bytes or 99):
            points.add((sum(times), max(times), max(sizes)))
    return {
        point
        for point in points
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in points
        )
    }


def front_of(costs, space) -> list[tuple[float, float, int]]:
    return [(p.latency_s, p.slowest_s, p.bytes) for p in parallelize(costs, space).plans]


SPACES = (
    PipelineSpace(3),
    PipelineSpace(4, meshes=(ONE,)),
    PipelineSpace(4, devices_per_node=2, inside=INSIDE, outside=OUTSIDE),
    PipelineSpace(4, max_stages=2),
    PipelineSpace(6, devices_per_node=2, max_stages=3, outside=OUTSIDE),
    PipelineSpace(4, memory_bytes=6, inside=INSIDE),
    PipelineSpace(5, devices_per_node=3),
    PipelineSpace(2, max_stages=1),
)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("space", SPACES, ids=range(len(SPACES)))
def test_the_front_is_that_of_all_pipelines(space, seed):
    costs = Irregular(5, seed)
    found = front_of(costs, replace(space, has_equal_layers=False))
    assert len(found) == len(set(found))
    assert set(found) == brute_front(costs, space)
    assert found == sorted(found)


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_equal_layers_are_asked_for_once(num_devices):
    costs, space = Decoder(6), PipelineSpace(num_devices, memory_bytes=2**20)
    asked = []

    class Counting(Decoder):
        def options(self, first, end, mesh):
            asked.append((end - first, first == 0, end == self.num_layers, mesh))
            return super().options(first, end, mesh)

    found = front_of(Counting(6), space)
    assert len(asked) == len(set(asked))
    assert set(found) == brute_front(costs, space)


def test_plans_have_all_layers_and_devices_in_order():
    for plan in parallelize(Decoder(9), PipelineSpace(8, devices_per_node=4)).plans:
        bounds = [(stage.first, stage.end) for stage in plan.stages]
        assert bounds[0][0] == 0
        assert bounds[-1][1] == 9
        assert all(a[1] == b[0] for a, b in pairwise(bounds))
        assert plan.num_devices == 8
        assert sum(plan.stage_shares) == pytest.approx(1.0)
        assert plan.phase_s == (pytest.approx(plan.latency_s),)


def test_the_stage_with_the_head_gets_fewer_layers():
    plan = parallelize(Decoder(10), PipelineSpace(4, meshes=(ONE,))).highest_rate
    assert [stage.num_layers for stage in plan.stages] == [3, 3, 3, 1]
    assert plan.parallel == ParallelConfig(4, 1)
    assert plan.slowest_s == 3.0


def test_ends_of_the_front_are_named():
    front = parallelize(Decoder(8), PipelineSpace(4))
    latencies, slowest, sizes = zip(*front_of(Decoder(8), PipelineSpace(4)), strict=True)
    assert front.fastest.latency_s == min(latencies)
    assert front.highest_rate.slowest_s == min(slowest)
    assert front.smallest.bytes == min(sizes)
    filled = front.best_filled
    assert all(
        len(filled.stages) * filled.slowest_s <= len(plan.stages) * plan.slowest_s
        for plan in front.plans
    )
    assert all(plan.bytes <= 200 for plan in front.within(200).plans)


def test_a_plan_of_different_meshes_is_no_parallel_config():
    (same, *_) = parallelize(Decoder(6), PipelineSpace(3, meshes=(ONE,))).plans
    (mixed, *_) = parallelize(Decoder(6), PipelineSpace(3, max_stages=2)).plans
    assert (same.parallel, mixed.parallel) == (ParallelConfig(3, 1), None)


def test_nothing_that_fits_is_an_empty_front():
    front = parallelize(Decoder(4), PipelineSpace(2, memory_bytes=1))
    assert front.plans == ()
    with pytest.raises(ConfigError, match="fits their memory"):
        _ = front.fastest


def test_a_tolerance_leaves_out_only_what_is_close():
    exact = front_of(Decoder(24), PipelineSpace(8))
    close = front_of(Decoder(24), PipelineSpace(8, tolerance=0.05))
    assert len(close) < len(exact)
    for latency, slowest, size in exact:
        assert any(a <= latency and b * 0.95 <= slowest and c * 0.95 <= size for a, b, c in close)


def test_submeshes_are_powers_of_two_and_then_full_nodes():
    assert submeshes(16, 4) == (
        ONE,
        MeshShape(1, 2),
        MeshShape(1, 4),
        MeshShape(2, 4),
        MeshShape(4, 4),
    )
    assert submeshes(3, 8) == (ONE, MeshShape(1, 2))
    assert submeshes(12, 6) == (ONE, MeshShape(1, 2), MeshShape(1, 6), MeshShape(2, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_devices": 0}, "num_devices is 0"),
        ({"devices_per_node": 0}, "devices_per_node is 0"),
        ({"max_stages": 0}, "max_stages is 0"),
        ({"tolerance": 1.0}, "tolerance is 1.0"),
        ({"devices_per_node": 2, "meshes": (MeshShape(1, 3),)}, "whole ones"),
    ],
)
def test_a_space_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        PipelineSpace(**{"num_devices": 4, **change})


def test_a_stage_without_a_time_is_refused():
    class Timeless(Decoder):
        def options(self, first, end, mesh):
            return (StageCost(float("nan"), (), 1),)

    with pytest.raises(ConfigError, match="nan s"):
        parallelize(Timeless(2), PipelineSpace(1))


def test_a_transfer_is_the_new_tokens_hidden_states():
    shape = ModelShape("m", 2, 64, 128, 4, 4, 16, 100, 512)
    phases = (Phase("prefill", 100, 1, 0, 2.0), Phase("decode", 4, 4, 50, 3.0))
    found = activation_transfer(shape, phases, Link(bytes_per_s=1280.0, latency_s=0.5))
    assert found.phase_s == (10.5, 0.9)
    assert found.seconds == pytest.approx(2 * 10.5 + 3 * 0.9)


def test_uneven_stages_remove_overhead_of_equal_ones():
    gain = slicing_gain(Decoder(16, head_layers=2.0), num_stages=8, mesh=ONE)
    # Equal: 2 layers and a head of 2; at best 3 layers, as 7 stages of 2 leave 2 and the head.
    assert (gain.whole_s, gain.equal_s, gain.sliced_s) == (18.0, 4.0, 3.0)
    assert gain.overhead_removed == pytest.approx((32 - 24) / (32 - 18))


def test_without_heavy_ends_equal_layers_are_best():
    gain = slicing_gain(Decoder(16, head_layers=0.0), num_stages=8, mesh=ONE, receive=INSIDE)
    assert gain.equal_s == gain.sliced_s == 2.25
    assert gain.overhead_removed == 0.0


def test_layers_that_cannot_be_equal_differ_by_one():
    assert equal_layers(7, 3) == ((0, 2), (2, 4), (4, 7))
    with pytest.raises(ConfigError, match="from 1 to 7 layers"):
        slicing_gain(Decoder(7), num_stages=8, mesh=ONE)


def test_many_layers_over_many_devices_take_less_than_a_second():
    started_s = time.process_time()
    front = parallelize(Decoder(80), PipelineSpace(16, devices_per_node=8))
    assert front.plans
    assert time.process_time() - started_s < 1.0
