"""Where requests go, given what their groups tell and what they ask."""

import pytest

from fabric.core.errors import Overloaded
from fabric.core.request import Objectives, ServicePace
from fabric.core.weights import WeightState
from fabric.router.policy import PredictedFinish, RoundRobin
from fabric.router.routing import Routing
from fabric.router.work import DispatchedWork
from tests.unit.routing_world import ready, request

NONE = Objectives()
BUSY = {"num_running": 50, "num_waiting": 20, "num_queued_tokens": 4000}


def new_routing(policy=None, work=None, objectives=None, max_waiting_cold=256):
    return Routing(
        policy or PredictedFinish(), work or DispatchedWork(), objectives or {}, max_waiting_cold
    )


def sent(routing, groups, objectives=NONE, asked=None):
    demand = routing.demand(asked or request(), len(groups))
    return routing.route(demand, objectives, groups, 0.0)


def test_a_request_goes_where_its_model_is_on_the_device():
    route = sent(new_routing(), [ready("left", WeightState.COLD), ready("right")])
    assert (route.group, route.is_cold) == ("right", False)


def test_a_request_wakes_its_model_where_that_is_sooner_than_to_wait():
    route = sent(new_routing(), [ready("left", **BUSY), ready("right", WeightState.HOST)])
    assert (route.group, route.is_cold) == ("right", True)


def test_a_group_that_meets_the_objectives_goes_before_the_one_that_finishes_first():
    slow_start = ServicePace(((1, 0.15), (1000, 0.15)), ((1, 1, 0.001),))
    groups = [ready("left", pace=slow_start), ready("right")]
    assert sent(new_routing(), groups).group == "left"
    assert sent(new_routing(), groups, Objectives(ttft_s=0.12)).group == "right"


def test_round_robin_leaves_out_groups_that_would_miss_an_objective():
    groups = [ready("left", **BUSY), ready("right")]
    routing = new_routing(RoundRobin())
    routes = [sent(routing, groups, Objectives(ttft_s=0.5)) for _ in range(4)]
    assert [route.group for route in routes] == ["right"] * 4


def test_where_every_group_misses_the_best_is_named_with_what_it_misses():
    groups = [ready("left", **BUSY), ready("right")]
    route = sent(new_routing(), groups, Objectives(e2e_s=0.1))
    assert route.group == "right"
    assert route.miss.objective == "e2e"
    assert route.miss.predicted_s == pytest.approx(0.2)


def test_prompts_that_begin_alike_go_where_the_first_went():
    work = DispatchedWork()
    routing = new_routing(work=work)
    groups = [ready("left"), ready("right")]
    first = sent(routing, groups, asked=request((5,) * 64, max_tokens=1))
    routing.note_dispatched(first)
    other = sent(routing, [*reversed(groups)], asked=request((5,) * 64, max_tokens=1))
    assert other.group == first.group == "left"


def test_no_more_requests_wait_for_weights_than_allowed():
    work = DispatchedWork()
    routing = new_routing(work=work, max_waiting_cold=2)
    cold = [ready("left", WeightState.COLD)]
    routes = [sent(routing, cold) for _ in range(2)]
    first, second = (work.entry(it.group, it.demand, it.is_cold) for it in routes)
    with second, first as entry:
        with pytest.raises(Overloaded, match="2 requests wait for weights of 'a'") as caught:
            sent(routing, cold)
        assert caught.value.retry_after_s == 7.0
        assert sent(routing, [*cold, ready("right", **BUSY)]).group == "right"
        entry.note_tokens(1)
        assert sent(routing, cold).is_cold
    assert work.num_waiting_cold("a") == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 1000}, 128),
        ({"max_tokens": 50}, 50),
        ({"max_tokens": 1000, "expected_tokens": 300}, 300),
        ({"max_tokens": 200, "expected_tokens": 300}, 200),
    ],
)
def test_an_output_is_expected_to_be_as_long_as_told_or_as_usual(fields, expected):
    assert new_routing().demand(request(**fields), 1).num_output_tokens == expected


def test_an_output_is_expected_to_be_as_long_as_those_before():
    routing = new_routing()
    for _ in range(20):
        routing.note_output(request(tenant="acme"), 20)
    demand = routing.demand(request(max_tokens=1000, tenant="acme"), 1)
    assert demand.num_output_tokens == 20


def test_first_tokens_that_come_late_make_later_predictions_longer():
    routing = new_routing()
    before = sent(routing, [ready("left")])
    for _ in range(100):
        routing.note_first_token(before, 3 * before.forecast.ttft_s, 0.0)
    after = sent(routing, [ready("left")])
    assert after.forecast.ttft_s == pytest.approx(3 * before.forecast.ttft_s, rel=0.01)


def test_a_group_that_was_not_measured_gets_its_requests_too():
    route = sent(new_routing(), [ready("left", pace=ServicePace())], Objectives(ttft_s=1e-9))
    assert (route.group, route.forecast, route.miss) == ("left", None, None)


def test_the_models_objectives_stand_where_a_request_has_none():
    routing = new_routing(objectives={"a": Objectives(e2e_s=9.0)})
    assert routing.objectives(request(objectives=Objectives(1.0))) == Objectives(1.0, None, 9.0)
