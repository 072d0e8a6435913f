"""Who gives way when host memory is too small for all who have work."""

from dataclasses import replace

from fabric.core.weights import WeightMove
from tests.unit.residency_world import MB, MODEL, World

FETCH, LOAD, DROP = WeightMove.FETCH, WeightMove.LOAD, WeightMove.DROP
HOST = replace(MODEL, starts="host")
PINNED = replace(MODEL, pinned=True)


def test_nobody_overtakes_the_overdue_to_host_memory():
    large = replace(MODEL, host_bytes=800 * MB)
    world = World([PINNED, HOST, large, MODEL], host_bytes=800 * MB)
    world.settle()
    world.kv[0].use(5)
    world.want(2, 0, 1, on_device=[0])
    assert world.plan() == []
    world.now += 32.0
    world.want(3, 2, 0, 1, on_device=[0])
    assert world.plan() == []
    assert world.states() == "rhcc"


def test_nobody_begins_to_load_from_host_memory_that_the_overdue_are_short_of():
    small = replace(HOST, host_bytes=100 * MB, num_slabs=1)
    world = World([small, small, MODEL], host_bytes=400 * MB)
    world.settle()
    world.want(0)
    assert world.plan() == [(LOAD, 0)]
    world.want(2)
    assert world.plan() == []
    world.now += 32.0
    assert world.plan() == []
    world.want(1, 2)
    assert world.plan() == []
    world.work()
    assert world.plan() == [(DROP, 0), (DROP, 1), (FETCH, 2)]


def test_copies_of_models_on_the_device_leave_host_memory_first():
    world = World([MODEL] * 4, host_bytes=800 * MB)
    for number in range(3):
        world.want(number)
        world.settle()
    assert world.states() == "crrc", "the first one's copy went while it was on the device"
    world.want(3)
    assert world.plan() == [(DROP, 1), (FETCH, 3)]


def test_the_copy_that_is_cheapest_to_bring_back_leaves_host_memory():
    world = World([HOST, HOST, MODEL], host_bytes=800 * MB)
    world.settle()
    for model, number in ((0, 5), (1, 3)):
        for _ in range(number):
            world.residency.note_arrival(model, world.now)
    world.want(2)
    assert world.plan() == [(DROP, 1), (FETCH, 2)]


def test_copies_that_wait_for_the_device_stay_in_host_memory_until_someone_is_overdue():
    world = World([PINNED, MODEL, HOST, HOST], host_bytes=800 * MB)
    world.settle()
    assert world.states() == "rchh"
    world.kv[0].use(5)
    world.want(1, 0, 2, 3, on_device=[0])
    assert world.plan() == []
    world.now += 32.0
    world.want(1, 0, 2, 3, on_device=[0])
    assert world.plan() == [(DROP, 3), (FETCH, 1)], "the other one is next to be loaded"


def test_copies_of_models_without_work_leave_host_memory_for_those_that_have_some():
    world = World([PINNED, HOST, MODEL], host_bytes=400 * MB)
    world.settle()
    world.want(2)
    assert world.plan() == [(DROP, 1), (FETCH, 2)]
