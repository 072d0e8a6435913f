"""How weights come, what people can ask for, and what a move that fails leaves."""

from dataclasses import replace

import pytest

from fabric.core.errors import ConfigError, InvalidRequest
from fabric.core.weights import WeightMove, WeightResult, WeightState
from tests.unit.residency_world import MB, MODEL, World

FETCH, LOAD, EVICT, DROP = WeightMove.FETCH, WeightMove.LOAD, WeightMove.EVICT, WeightMove.DROP
RESIDENT = replace(MODEL, starts="resident")
PINNED = replace(MODEL, pinned=True)


def test_a_cold_model_in_demand_is_fetched_then_loaded_once():
    world = World([MODEL])
    world.want(0)
    assert world.plan() == [(FETCH, 0)]
    assert world.plan() == []
    assert (world.states(), world.accesses(), world.residency.has_work) == ("f", "a", True)
    world.work()
    assert world.plan() == [(LOAD, 0)]
    assert world.plan() == []
    world.work()
    assert (world.states(), world.accesses(), world.residency.has_work) == ("r", "o", False)
    assert world.plan() == []


def test_one_fetch_goes_on_at_a_time_and_the_best_rank_is_first():
    world = World([MODEL] * 3, num_slabs=20)
    world.want(2, 0, 1)
    assert world.plan() == [(FETCH, 2)]
    world.work()
    assert world.plan() == [(LOAD, 2), (FETCH, 0)]
    world.work()
    assert world.plan() == [(LOAD, 0), (FETCH, 1)]


def test_without_host_memory_a_load_goes_straight_from_disk():
    world = World([MODEL], host_bytes=0)
    world.want(0)
    assert world.plan() == [(LOAD, 0)]
    world.work()
    world.residency.ask(0, WeightState.COLD, None, world.now)
    world.want()
    assert world.plan() == [(EVICT, 0)]
    assert world.states() == "c"


def test_weights_that_are_larger_than_host_memory_go_straight_from_disk():
    world = World([MODEL, replace(MODEL, host_bytes=100 * MB)], host_bytes=100 * MB)
    world.want(0, 1)
    assert world.plan() == [(LOAD, 0), (FETCH, 1)]


def test_iterations_may_begin_when_the_first_layers_are_there():
    world = World([MODEL], host_bytes=0)
    world.want(0)
    world.plan()
    (number,) = world.under_way
    world.residency.finish(WeightResult(number, is_last=False), world.now)
    assert (world.states(), world.accesses()) == ("l", "o")
    assert world.plan() == []
    world.work()
    assert (world.states(), world.accesses()) == ("r", "o")


def test_slabs_are_charged_from_the_order_to_the_eviction_and_kv_is_guaranteed_its_least():
    world = World([replace(MODEL, min_slabs=3), MODEL])
    world.want(0)
    world.plan()
    assert world.slabs.num_charged == 0
    world.work()
    world.plan()
    assert (world.slabs.num_charged, world.slabs.num_chargeable) == (4, 3)
    world.work()
    world.residency.ask(0, WeightState.HOST, None, world.now)
    world.want()
    assert world.plan() == [(EVICT, 0)]
    assert (world.slabs.num_charged, world.slabs.num_chargeable) == (0, 10)


def test_models_start_on_the_device_in_their_order_as_far_as_there_is_room():
    world = World([RESIDENT, RESIDENT, PINNED, replace(MODEL, starts="host"), MODEL])
    world.settle()
    assert world.states() == "rhrhc"


def test_direct_loads_do_not_overtake_who_starts_before_them():
    large = replace(RESIDENT, host_bytes=4000 * MB)
    world = World([RESIDENT, RESIDENT, large], host_bytes=1000 * MB)
    world.settle()
    assert world.states() == "rrc"


def test_pinned_models_that_do_not_fit_together_are_refused():
    with pytest.raises(ConfigError, match="m0, m1, m2 together need 15 slabs of 10"):
        World([PINNED] * 3)


def test_a_model_that_fits_only_without_the_pinned_ones_is_refused():
    with pytest.raises(ConfigError, match="m1 needs 7 slabs of 10; pinned m0 need 5 of them"):
        World([PINNED, replace(MODEL, num_slabs=6)])


def test_bounds_of_kv_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="m0: its KV gets 2 slabs at most; allowed: 3 to 10"):
        World([replace(MODEL, min_slabs=3, max_slabs=2)])


def test_an_idle_model_leaves_the_device_and_stays_in_host_memory():
    world = World([MODEL, PINNED], idle_s=60.0)
    world.want(0)
    world.settle()
    world.plan()
    world.want()
    world.now += 59.0
    assert world.plan() == []
    assert world.residency.due_at_s > world.now
    world.now += 1.0
    assert world.residency.due_at_s == world.now
    assert world.plan() == [(EVICT, 0)]
    assert (world.states(), world.accesses()) == ("hr", "ao")


def test_iterations_count_as_use_although_nothing_is_planned_for_them():
    world = World([MODEL], idle_s=60.0)
    world.want(0)
    world.settle()
    for _ in range(10):
        world.now += 30.0
        world.want(0, on_device=[0])
        assert world.plan() == []
    world.want()
    world.now += 59.0
    assert world.plan() == []


def test_who_asks_for_a_model_to_leave_lets_its_sequences_end():
    world = World([MODEL])
    world.want(0)
    world.settle()
    world.residency.ask(0, WeightState.COLD, None, world.now)
    assert world.accesses() == "d"
    world.want(0, on_device=[0])
    assert world.plan() == []
    world.want(0)
    assert world.plan() == [(EVICT, 0), (DROP, 0), (FETCH, 0)], "what waits wakes it again"


def test_who_asks_for_a_model_gets_it_before_the_best_rank_and_keeps_it_for_a_turn():
    world = World([MODEL] * 3)
    world.want(0, 1)
    world.settle()
    world.now += 100.0
    world.residency.ask(2, WeightState.RESIDENT, None, world.now)
    assert world.plan() == [(FETCH, 2)]
    world.work()
    assert world.plan() == [(EVICT, 0), (LOAD, 2)]
    world.work()
    world.want(1, 0)
    assert world.plan() == [], "it has no work, but stays"
    world.now += 4.0
    assert world.plan() == [(EVICT, 2), (LOAD, 0)]


def test_who_asks_for_a_model_may_have_the_place_of_one_that_was_asked_for():
    world = World([replace(MODEL, num_slabs=9), replace(MODEL, num_slabs=9)])
    for model in (0, 1):
        world.residency.ask(model, WeightState.RESIDENT, None, world.now)
        world.settle()
        assert world.state(model) is WeightState.RESIDENT


def test_asking_again_takes_back_that_a_model_should_leave():
    world = World([MODEL])
    world.want(0)
    world.settle()
    world.residency.ask(0, WeightState.HOST, None, world.now)
    world.want(0, on_device=[0])
    world.plan()
    world.residency.ask(0, WeightState.RESIDENT, None, world.now)
    assert world.plan() == []
    assert world.accesses() == "o"


def test_pinning_brings_a_model_and_unpinning_lets_it_go():
    world = World([MODEL, MODEL], idle_s=60.0)
    world.residency.ask(1, None, True, world.now)
    assert world.settle() == [(FETCH, 1), (LOAD, 1)]
    world.now += 1000.0
    assert world.plan() == []
    assert world.residency.load(1).pinned
    world.residency.ask(1, None, False, world.now)
    assert world.plan() == [(EVICT, 1)]


@pytest.mark.parametrize(
    ("state", "pinned", "refusal"),
    [
        (WeightState.LOADING, None, "state: loading is only a passage; allowed: cold, host, res"),
        (WeightState.FETCHING, None, "state: fetching is only a passage"),
        (WeightState.COLD, True, "state: cold, but pinned weights stay; unpin them"),
        (WeightState.HOST, None, "state: host memory keeps 0 bytes .* allowed: cold, resident"),
        (None, True, "pinned: m1 needs 6 slabs of 10; pinned m0 need 6 of them"),
    ],
)
def test_what_can_never_be_is_refused(state, pinned, refusal):
    world = World([replace(MODEL, min_slabs=2)] * 2, host_bytes=0)
    with pytest.raises(InvalidRequest, match=refusal):
        world.residency.ask(0, state, pinned, world.now)
    assert world.residency.load(0).pinned is False


def test_a_failed_load_leaves_the_old_state_and_is_tried_again_after_longer_and_longer_pauses():
    world = World([MODEL])
    world.want(0)
    world.plan()
    world.work()
    for pause_s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert world.plan() == [(LOAD, 0)]
        world.work(error="bad magic")
        assert (world.states(), world.accesses()) == ("h", "a")
        assert (world.slabs.num_charged, world.slabs.num_chargeable) == (0, 10)
        assert world.residency.take_failed() == [(0, "bad magic")]
        assert world.residency.take_failed() == []
        assert world.plan() == []
        assert world.residency.retry_after_s(0, world.now) == pause_s
        world.now += pause_s
    assert world.plan() == [(LOAD, 0)]


def test_a_failed_fetch_leaves_a_model_cold_and_lets_others_go_first():
    world = World([MODEL, MODEL])
    world.want(0, 1)
    world.plan()
    world.work(error="no such file")
    assert world.residency.take_failed() == [(0, "no such file")]
    assert world.states() == "cc"
    assert world.plan() == [(FETCH, 1)]


def test_who_asks_does_not_wait_for_the_pause_to_end():
    world = World([MODEL])
    world.want(0)
    world.plan()
    world.work(error="no such file")
    assert world.plan() == []
    world.residency.ask(0, WeightState.RESIDENT, None, world.now)
    assert world.plan() == [(FETCH, 0)]


def test_why_a_move_failed_is_known_until_one_succeeds():
    world = World([MODEL])
    world.want(0)
    world.plan()
    world.work(error="no such file")
    assert world.residency.load(0).problem == "no such file"
    world.now += 1.0
    world.plan()
    assert world.residency.load(0).problem == "no such file"
    world.work()
    assert world.residency.load(0).problem == ""
    world.plan()
    world.work(error="torn cable")
    assert world.residency.load(0).problem == "torn cable"
    world.now += 2.0
    world.plan()
    world.work()
    assert (world.states(), world.residency.load(0).problem) == ("r", "")


@pytest.mark.parametrize(
    ("state", "pinned", "problem"),
    [
        (WeightState.RESIDENT, None, ""),
        (WeightState.COLD, None, ""),
        (None, True, ""),
        (None, False, "no such file"),
        (None, None, "no such file"),
    ],
)
def test_who_asks_for_another_move_is_not_told_why_the_last_one_failed(state, pinned, problem):
    world = World([MODEL])
    world.want(0)
    world.plan()
    world.work(error="no such file")
    world.residency.ask(0, state, pinned, world.now)
    assert world.residency.load(0).problem == problem


def test_a_wish_that_fails_is_not_tried_again():
    world = World([MODEL])
    world.residency.ask(0, WeightState.RESIDENT, None, world.now)
    world.plan()
    world.work(error="no such file")
    world.now += 100.0
    assert world.plan() == []


def test_a_load_that_fails_after_its_first_layers_takes_the_model_off_the_device():
    world = World([MODEL], host_bytes=0)
    world.want(0)
    world.plan()
    (number,) = world.under_way
    world.residency.finish(WeightResult(number, is_last=False), world.now)
    assert world.kv[0].use(2)
    world.want(0, on_device=[0])
    world.plan()
    world.work(error="short read")
    assert (world.states(), world.accesses()) == ("c", "a")
    world.kv[0].free()
    assert world.slabs.num_chargeable == 10


def test_a_pinned_model_that_fails_to_load_is_tried_again_without_anyone_asking():
    world = World([PINNED])
    world.plan()
    world.work(error="no such file")
    assert world.plan() == []
    assert world.residency.due_at_s == world.now + 1.0
    world.now += 1.0
    assert world.plan() == [(FETCH, 0)]


def test_loads_are_counted_and_timed():
    world = World([MODEL])
    world.want(0)
    world.plan()
    world.work(7.0)
    world.plan()
    world.work(3.0)
    figures = world.residency.load(0)
    assert (figures.state, figures.num_loads, figures.load_s) == (WeightState.RESIDENT, 1, 3.0)
