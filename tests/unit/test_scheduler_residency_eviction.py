"""Who gives way when a device is too small for all who have work."""

from dataclasses import replace
from time import perf_counter

from fabric.core.weights import WeightMove, WeightState
from tests.unit.residency_world import MB, MODEL, World

LOAD, EVICT = WeightMove.LOAD, WeightMove.EVICT
HOST = replace(MODEL, starts="host")
PINNED = replace(MODEL, pinned=True)


def crowd(*models, **config) -> World:
    """All start in host memory; those that fit on the device, and have no work now, are there."""
    world = World(models, **config)
    world.settle()
    room = world.slabs.num_slabs
    for number, model in enumerate(models):
        if model.num_slabs + max(1, model.min_slabs) <= room:
            world.want(number)
            world.settle()
            room -= model.num_slabs + max(1, model.min_slabs)
    world.want()
    world.plan()
    return world


def arrivals(world: World, **counts: int) -> None:
    for name, number in counts.items():
        for _ in range(number):
            world.residency.note_arrival(int(name[1:]), world.now)


def test_a_model_without_work_gives_way_at_once():
    world = crowd(HOST, HOST, HOST)
    assert world.states() == "rrh"
    world.want(0, 2, on_device=[0])
    assert world.plan() == [(EVICT, 1), (LOAD, 2)]


def test_the_cheapest_to_bring_back_gives_way_first():
    world = crowd(HOST, HOST, HOST)
    arrivals(world, m0=3, m1=5)
    world.want(2)
    assert world.plan() == [(EVICT, 0), (LOAD, 2)]


def test_a_model_that_would_have_to_be_fetched_again_costs_more():
    direct = replace(MODEL, host_bytes=4000 * MB)
    world = World([MODEL, MODEL, direct], host_bytes=400 * MB)
    for number in (0, 1):
        world.want(number)
        world.settle()
    arrivals(world, m0=1, m1=1)
    assert world.in_host == {1}
    world.want(2)
    assert world.plan() == [(EVICT, 1), (LOAD, 2)]


def test_old_arrivals_count_less_than_recent_ones():
    world = crowd(HOST, HOST, HOST)
    arrivals(world, m0=5)
    world.now += 120.0
    arrivals(world, m1=3)
    world.want(2)
    assert world.plan() == [(EVICT, 0), (LOAD, 2)]


def test_of_equally_cheap_ones_the_longest_unused_gives_way():
    world = crowd(HOST, HOST, HOST)
    world.now += 10.0
    world.want(0)
    world.plan()
    world.want(2)
    assert world.plan() == [(EVICT, 1), (LOAD, 2)]


def test_no_more_give_way_than_needed():
    small = replace(HOST, num_slabs=1)
    world = crowd(small, HOST, replace(HOST, num_slabs=5), num_slabs=8)
    assert world.states() == "rrh"
    world.want(2)
    assert world.plan() == [(EVICT, 1), (LOAD, 2)], "without the small one, although it is cheaper"


def test_a_model_with_work_is_cleared_for_a_better_rank_once_its_turn_is_over():
    world = crowd(HOST, HOST, num_slabs=8)
    world.want(1, 0, on_device=[0])
    world.now += 2.0
    assert world.plan() == []
    assert world.accesses() == "oa"
    world.now += 2.0
    assert world.plan() == []
    assert world.accesses() == "ca"
    world.want(1, 0)
    assert world.plan() == [(EVICT, 0), (LOAD, 1)]
    assert world.states() == "hl"


def test_a_turn_begins_with_the_first_plan_that_lets_iterations_run():
    world = World([HOST, HOST], num_slabs=8)
    world.settle()
    world.want(0)
    world.plan()
    world.work()
    world.now += 100.0
    world.want(1, 0)
    assert world.plan() == []
    world.now += 4.0
    assert world.plan() == [(EVICT, 0), (LOAD, 1)]


def test_a_model_with_work_is_not_cleared_for_a_worse_rank():
    world = crowd(HOST, HOST, num_slabs=8)
    world.now += 10.0
    world.want(0, 1, on_device=[0])
    world.plan()
    assert world.accesses() == "oa"


def test_a_cleared_model_is_opened_again_when_its_place_is_no_longer_needed():
    world = crowd(HOST, HOST, num_slabs=8)
    world.now += 10.0
    world.want(1, 0, on_device=[0])
    world.plan()
    assert (world.accesses(), world.residency.num_kept_slabs) == ("ca", 3)
    world.want(0, on_device=[0])
    assert world.plan() == []
    assert (world.accesses(), world.residency.num_kept_slabs) == ("oa", 0)


def test_a_model_that_is_being_cleared_stays_so_when_ranks_change():
    world = crowd(HOST, HOST, num_slabs=8)
    world.now += 10.0
    world.want(1, 0, on_device=[0])
    world.plan()
    world.want(0, 1, on_device=[0])
    world.plan()
    assert world.accesses() == "ca"


def test_who_is_cleared_does_not_change_with_the_costs():
    world = crowd(HOST, HOST, HOST)
    world.now += 10.0
    world.want(2, 0, 1, on_device=[0, 1])
    world.plan()
    assert world.accesses() == "coa"
    arrivals(world, m0=5)
    world.plan()
    assert world.accesses() == "coa"


def test_memory_goes_to_whom_it_was_gathered_for_although_someone_more_urgent_has_come():
    world = crowd(HOST, HOST, HOST, num_slabs=8)
    world.now += 10.0
    world.want(1, 0, on_device=[0])
    world.plan()
    world.residency.ask(2, WeightState.RESIDENT, None, world.now)
    world.plan()
    world.want(1, 0)
    assert world.plan() == [(EVICT, 0), (LOAD, 1)]


def test_slabs_that_become_free_while_a_model_is_cleared_go_to_nobody_else():
    world = crowd(HOST, HOST, replace(HOST, num_slabs=2), num_slabs=9)
    assert world.states() == "rhr"
    assert world.kv[0].use(2)
    world.now += 10.0
    world.want(1, 0, 2, on_device=[0, 2])
    world.plan()
    assert (world.accesses(), world.residency.num_kept_slabs) == ("cao", 0)
    world.kv[0].account.give_back(world.kv[0].busy.pop())
    world.plan()
    assert world.residency.num_kept_slabs == 1
    assert not world.kv[2].use(2)


def test_nobody_is_cleared_if_that_would_not_be_enough():
    world = crowd(HOST, HOST, replace(HOST, num_slabs=8))
    world.now += 10.0
    world.residency.ask(1, WeightState.HOST, None, world.now)
    world.plan()
    world.want(1, 0, on_device=[0])
    world.settle()
    world.want(2, 0, 1, on_device=[0, 1])
    world.plan()
    assert world.accesses() == "ooa", "the second one's turn is not over"
    world.now += 4.0
    world.plan()
    assert world.accesses() == "cca"


def test_weights_that_are_loading_and_pinned_ones_never_give_way():
    world = World([PINNED, HOST, HOST], num_slabs=10)
    world.settle()
    world.want(1)
    assert world.plan() == [(LOAD, 1)]
    world.residency.ask(2, WeightState.RESIDENT, None, world.now)
    world.want(2, 1)
    assert world.plan() == []
    assert world.states() == "rlh"


def test_cached_prefixes_give_way_to_weights():
    world = crowd(HOST, HOST)
    world.residency.ask(1, WeightState.HOST, None, world.now)
    world.plan()
    world.kv[0].use(6)
    world.want(1, 0)
    assert world.plan() == []
    world.kv[0].free(keep_idle=True)
    assert world.plan() == [(LOAD, 1)]
    assert len(world.kv[0].idle) == 2


def test_pinned_models_admit_nobody_until_the_overdue_fit_beside_their_kv():
    world = World([PINNED, HOST], num_slabs=10)
    world.settle()
    assert world.kv[0].use(6)
    world.want(0, 1, on_device=[0])
    world.plan()
    world.now += 31.0
    world.plan()
    assert world.accesses() == "oa"
    world.now += 1.0
    world.plan()
    assert world.accesses() == "da"
    world.kv[0].account.give_back(world.kv[0].busy.pop())
    world.plan()
    assert (world.accesses(), world.residency.num_kept_slabs) == ("da", 1)
    world.kv[0].free()
    assert world.plan() == [(LOAD, 1)]
    assert world.accesses() == "oa"


def test_nobody_overtakes_the_overdue_to_the_device():
    world = crowd(HOST, replace(HOST, num_slabs=8), replace(HOST, num_slabs=1))
    world.residency.ask(2, WeightState.HOST, None, world.now)
    for seconds in (0.0, 31.0):
        world.now += seconds
        world.residency.ask(0, WeightState.RESIDENT, None, world.now)
        world.want(1)
        world.plan()
    assert world.states() == "rhh"
    world.now += 1.0
    world.want(2, 1)
    assert world.plan() == []
    world.now += 4.0
    assert world.plan() == [(EVICT, 0), (LOAD, 1)]


def test_a_smaller_model_may_overtake_one_that_is_not_overdue():
    small = replace(HOST, num_slabs=1)
    world = World([PINNED, HOST, small], num_slabs=10)
    world.settle()
    world.kv[0].use(3)
    world.want(0, 1, 2, on_device=[0])
    assert world.plan() == [(LOAD, 2)]


def test_weights_that_nobody_uses_give_way_to_kv_that_cannot_go_on():
    world = crowd(HOST, HOST)
    world.want(0, on_device=[0])
    world.demands = [replace(world.demands[0], num_short_slabs=3)]
    assert world.plan() == [(EVICT, 1)]
    assert world.kv[0].use(6)


def test_what_moves_took_is_learned_for_models_that_never_moved():
    world = World([replace(MODEL, load_s=0.0), replace(MODEL, load_s=0.0)], num_slabs=8)
    world.want(0)
    world.plan()
    world.work()
    world.plan()
    world.work(7.0)
    world.want(1, 0, on_device=[0])
    world.settle()
    for seconds, accesses in ((26.0, "oa"), (1.0, "ca")):
        world.now += seconds
        world.plan()
        assert world.accesses() == accesses, "a turn is four times the seconds that the load took"


def test_planning_costs_next_to_nothing_while_nothing_changes():
    world = crowd(*[replace(HOST, num_slabs=1)] * 12, num_slabs=30)
    world.want(*range(12), on_device=range(12))
    plan, demands, now = world.residency.plan, world.demands, world.now
    plan(demands, now)

    def seconds_each() -> float:
        start = perf_counter()
        for _ in range(100):
            plan(demands, now)
        return (perf_counter() - start) / 100

    assert min(seconds_each() for _ in range(20)) < 20e-6
