"""When a request is predicted to be served."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.core.request import LoadReport, ModelLoad, ServicePace
from fabric.core.weights import WeightState
from fabric.router.forecast import Demand, GroupView, ModelPace, ModelWork, Paces
from fabric.router.prediction import SHARE_LAG_S, predict
from tests.unit.routing_world import DECODE, PACE, PREFILL, demand, served, view, work


def predicted(asked, seen):
    found = predict(asked, seen)
    assert found is not None
    return found


def test_an_idle_group_takes_the_prompts_time_and_then_an_iteration_for_each_token():
    found = predicted(demand(prompt=100, output=11), view())
    assert found.ttft_s == pytest.approx(0.100)
    assert found.tpot_s == pytest.approx(0.010)
    assert found.e2e_s == pytest.approx(0.200)
    assert found.load_s == 0.0


def test_prompts_that_wait_come_first_and_those_that_run_make_the_batch_larger():
    found = predicted(demand(), view({"a": work(2, queued=1, prompt=200, output=50)}))
    iteration_under_way_s = 0.011
    assert found.ttft_s == pytest.approx(0.200 + 0.100 + iteration_under_way_s)
    assert found.tpot_s == pytest.approx(0.012)


def test_each_of_several_sequences_takes_a_place_in_the_batch():
    found = predicted(Demand("a", 100, 11, num_sequences=4), view())
    assert found.ttft_s == pytest.approx(0.100)
    assert found.tpot_s == pytest.approx(0.013)


def test_where_batches_are_of_one_each_request_ahead_is_waited_for():
    one = ServicePace(PREFILL, ((1, 1, 0.010),))
    paces = {"a": ModelPace.of(one)}
    found = predicted(demand(), view({"a": work(3, output=30)}, paces=paces))
    assert found.ttft_s == pytest.approx(30 * 0.010 + 0.100)
    assert found.tpot_s == pytest.approx(0.010)


def test_in_a_full_batch_a_request_waits_for_its_share_of_the_tokens_to_go():
    four = ServicePace(PREFILL, ((1, 1, 0.010), (4, 1, 0.010)))
    paces = {"a": ModelPace.of(four)}
    full = predicted(demand(), view({"a": work(4, output=160)}, paces=paces))
    assert full.ttft_s == pytest.approx(10 * 0.010 + 0.100)
    roomy = predicted(demand(), view({"a": work(3, output=120)}, paces=paces))
    assert roomy.ttft_s == pytest.approx(1 * 0.010 + 0.100)


def test_a_batch_is_larger_than_measured_where_more_are_seen_to_run():
    one = ServicePace(PREFILL, ((1, 1, 0.010),))
    seen = ModelLoad("a", num_running=8)
    found = predicted(
        demand(), view({"a": work(4, output=160)}, seen, paces={"a": ModelPace.of(one)})
    )
    assert found.ttft_s < 1.0


def test_where_memory_is_short_no_more_run_than_run_now():
    four = ServicePace(PREFILL, ((1, 1, 0.010), (4, 1, 0.010)))
    seen = ModelLoad("a", num_running=2, num_waiting=1)
    roomy = view({"a": work(3, output=60)}, seen, paces={"a": ModelPace.of(four)})
    full = LoadReport(num_blocks=100, num_free_blocks=2, models=(seen,))
    assert predicted(demand(), roomy).ttft_s == pytest.approx(1 * 0.010 + 0.100)
    short = predicted(demand(), replace(roomy, report=full))
    assert short.ttft_s == pytest.approx(2 / 3 * 60 / 2 * 0.010 + 0.100)
    others = replace(full, models=(seen, ModelLoad("b")), num_slabs=9, num_free_slabs=0)
    assert predicted(demand(), replace(roomy, report=others)).ttft_s == short.ttft_s
    spare = replace(others, num_free_slabs=1)
    assert predicted(demand(), replace(roomy, report=spare)).ttft_s < short.ttft_s


def test_another_models_work_is_ahead_until_it_is_done():
    ten_steps = work(1, output=10)
    found = predicted(demand(), view({"b": ten_steps}))
    assert found.ttft_s == pytest.approx(0.100 + 0.100)
    assert found.e2e_s == pytest.approx(0.200 + 0.100)


def test_another_models_long_work_takes_turns_with_ours():
    found = predicted(demand(), view({"b": work(1, output=10**6)}))
    assert found.ttft_s == pytest.approx(2 * 0.100 + SHARE_LAG_S)
    assert found.e2e_s == pytest.approx(2 * 0.200 + SHARE_LAG_S)


@pytest.mark.parametrize(
    ("state", "load_s"),
    [
        (WeightState.RESIDENT, 0.0),
        (WeightState.LOADING, 2.0),
        (WeightState.HOST, 2.0),
        (WeightState.FETCHING, 7.0),
        (WeightState.COLD, 7.0),
    ],
)
def test_weights_that_are_not_on_the_device_are_waited_for(state, load_s):
    found = predicted(demand(), view(None, ModelLoad("a", state)))
    assert found.load_s == load_s
    assert found.ttft_s == pytest.approx(load_s + 0.100)
    assert found.profiled_ttft_s == pytest.approx(0.100)


def test_what_others_do_during_a_load_is_not_waited_for_again():
    busy = {"b": work(1, output=150)}
    found = predicted(demand(), view(busy, ModelLoad("a", WeightState.HOST)))
    assert found.ttft_s == pytest.approx(2.0 + 0.100)


def test_what_we_sent_and_what_the_group_reports_are_the_same_requests_and_count_once():
    ours = {"a": work(2, queued=1, prompt=200, output=50)}
    same = ModelLoad("a", num_running=1, num_waiting=1, num_queued_tokens=200)
    assert predict(demand(), view(ours, same)) == predict(demand(), view(ours))


def test_requests_of_other_routers_show_in_the_report():
    more = ModelLoad("a", num_running=4, num_waiting=1, num_queued_tokens=300)
    found = predicted(demand(), view({"a": work(1, output=10)}, more))
    assert found.ttft_s == pytest.approx(0.300 + 0.100 + 0.014)
    assert found.tpot_s == pytest.approx(0.015)


def test_a_model_that_only_other_routers_use_is_ahead_too():
    idle = predicted(demand(), view())
    busy = predicted(demand(), view(None, ModelLoad("b", num_running=3)))
    assert busy.ttft_s > idle.ttft_s


def test_a_group_of_one_model_need_not_tell_its_models_apart():
    alone = GroupView("left", {}, LoadReport(num_running=2), {"a": ModelPace.of(PACE)})
    assert predicted(demand(), alone).tpot_s == pytest.approx(0.012)


def test_the_ratios_multiply_all_but_the_load():
    ratios = {"ratio": 3.0, "step_ratio": 2.0}
    found = predicted(demand(), view(None, ModelLoad("a", WeightState.HOST), **ratios))
    assert found.ttft_s == pytest.approx(2.0 + 3 * 0.100)
    assert found.tpot_s == pytest.approx(2 * 0.010)
    assert found.e2e_s == pytest.approx(found.ttft_s + 10 * 2 * 0.010)
    assert found.profiled_ttft_s == pytest.approx(0.100)
    assert found.profiled_tpot_s == pytest.approx(0.010)


@pytest.mark.parametrize("pace", [ServicePace(), ServicePace(PREFILL), ServicePace((), DECODE)])
def test_a_model_that_was_not_measured_is_not_predicted(pace):
    assert predict(demand(), view(paces={"a": ModelPace.of(pace)})) is None


def test_a_table_that_makes_no_sense_counts_as_not_measured():
    assert ModelPace.of(ServicePace(((2, 1.0), (1, 2.0)), DECODE)).profile is None


def test_another_model_that_was_not_measured_is_taken_to_be_as_fast_as_ours():
    paces = {"a": ModelPace.of(PACE), "b": ModelPace()}
    busy = {"b": work(1, output=10)}
    assert predict(demand(), view(busy, paces=paces)) == predict(demand(), view(busy))


def test_paces_are_built_once_for_each_greeting():
    paces, models = Paces(), (served("a"),)
    first = paces.of("left", models)
    assert paces.of("left", models) is first
    assert paces.of("left", (served("a"),)) is not first


counts = st.integers(0, 50)
works = st.builds(
    lambda n, queued, prompt, output: ModelWork(
        n, n, min(n, queued), prompt if min(n, queued) else 0, output, 100 * n
    ),
    st.integers(1, 50),
    counts,
    st.integers(1, 5000),
    st.integers(0, 5000),
)
loads = st.builds(
    lambda state, *numbers: ModelLoad("b", state, False, *numbers),
    st.sampled_from(WeightState),
    counts,
    counts,
    st.integers(0, 5000),
)


@given(works, works, loads, st.integers(1, 3000), st.integers(1, 500))
def test_more_to_do_on_a_group_is_never_predicted_to_end_earlier(ours, theirs, load, more, length):
    asked = demand(prompt=length, output=length)
    before = predicted(asked, view({"a": ours, "b": theirs}, load))
    theirs.output_tokens += more
    after = predicted(asked, view({"a": ours, "b": theirs}, load))
    assert 0 < before.ttft_s <= before.e2e_s < math.inf
    assert after.ttft_s >= before.ttft_s
    assert after.e2e_s >= before.e2e_s
