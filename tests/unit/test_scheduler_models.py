"""One scheduler over several models that share a device's memory and its time."""

from itertools import pairwise
from random import Random

import pytest

from fabric.core.errors import ModelNotFound, Unavailable
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.core.weights import WeightState
from fabric.scheduler.output import StepResult
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.settings import FairnessConfig, ResidencyConfig
from tests.unit.models_world import ModelShape, ModelsWorld

NO_TURNS = FairnessConfig(lag_s=None)


def warmed(world: ModelsWorld) -> ModelsWorld:
    """Let the first weights come."""
    while world.scheduler.num_moves or not world.now:
        world.step()
    return world


def test_each_model_gives_the_tokens_that_it_gives_alone():
    world = warmed(ModelsWorld([ModelShape(2, 4), ModelShape(1, 3), ModelShape(3, 7)], 16))
    for i in range(12):
        world.add(f"r{i}", i % 3, 3 + 2 * i, max_tokens=6)
    world.run()
    assert len(world.ends) == 12
    world.check_tokens()


def test_an_iteration_has_sequences_of_one_model_alone_and_models_take_turns():
    world = warmed(ModelsWorld([ModelShape(), ModelShape()], 16, fairness=FairnessConfig(1.0)))
    for i in range(4):
        world.add(f"r{i}", i % 2, 4, max_tokens=12)
    world.run()
    switches = sum(1 for a, b in pairwise(world.ran) if a != b)
    assert set(world.ran) == {0, 1}
    assert switches >= 8


def test_without_turns_the_older_request_s_model_goes_on_first():
    world = warmed(ModelsWorld([ModelShape(), ModelShape()], 16, fairness=NO_TURNS))
    world.add("old", 1, 4, max_tokens=5)
    world.add("young", 0, 4, max_tokens=5)
    world.run()
    assert world.ran == [1] * 5 + [0] * 5


def test_priority_goes_before_turns():
    world = warmed(ModelsWorld([ModelShape(), ModelShape()], 16, fairness=FairnessConfig(1.0)))
    world.add("later", 0, 4, max_tokens=5, priority=1)
    world.add("first", 1, 4, max_tokens=5)
    world.run()
    assert world.ran == [1] * 5 + [0] * 5


@pytest.mark.parametrize("name", ["fcfs", "priority", "edf", "mlfq", "srw"])
def test_weights_share_out_iterations_under_every_policy(name):
    fairness = FairnessConfig(2.0, {"m0": 3.0})
    world = warmed(
        ModelsWorld([ModelShape(), ModelShape()], 40, PolicyConfig(name), fairness=fairness)
    )
    for model in (0, 1):
        world.add(f"r{model}", model, 4, max_tokens=200)
    for _ in range(160):
        world.step()
    assert 2.5 < world.ran.count(0) / world.ran.count(1) < 3.5


def test_tenants_of_one_model_share_by_their_weights_where_not_all_can_run():
    fairness = FairnessConfig(2.0, tenant_weights={"gold": 2.0})
    policy = PolicyConfig("priority")
    world = warmed(ModelsWorld([ModelShape()], 40, policy, max_num_seqs=1, fairness=fairness))
    world.add("g", 0, 4, max_tokens=120, tenant="gold")
    world.add("s", 0, 4, max_tokens=120, tenant="silver")
    for _ in range(90):
        world.step()
    gold, silver = len(world.tokens["g", 0]), len(world.tokens["s", 0])
    assert 1.6 < gold / silver < 2.4


def test_no_model_starves_while_another_one_is_always_asked():
    world = warmed(ModelsWorld([ModelShape(), ModelShape()], 40, PolicyConfig("srw")))
    world.add("long", 1, 30, max_tokens=30)
    for i in range(200):
        world.add(f"short{i}", 0, 2, max_tokens=2)
        world.step()
        if "long" in world.ends:
            break
    assert "long" in world.ends


def test_batches_of_different_models_are_in_flight_together_without_draining():
    world = warmed(ModelsWorld([ModelShape(), ModelShape()], 16, num_batches=2))
    world.add("a", 0, 4, max_tokens=8)
    world.add("b", 1, 4, max_tokens=8)
    together = 0
    while world.scheduler.has_work:
        world.step()
        together += (
            len({output.model for output in world.in_flight}) + (len(world.in_flight) == 1) >= 2
        )
    world.check_tokens()
    assert together >= 7


def test_a_model_whose_turn_it_is_decodes_whole_while_another_is_in_the_next_stage():
    world = warmed(ModelsWorld([ModelShape(), ModelShape()], 24, num_batches=2))
    for i in range(8):
        world.add(f"r{i}", i % 2, 3, max_tokens=12)
    sizes = []
    for _ in range(12):
        output = world.step()
        sizes.append(len(output.scheduled))
    assert sizes[4:] == [4] * 8
    world.run()
    world.check_tokens()


def test_more_tenants_than_are_remembered_are_all_served():
    world = warmed(ModelsWorld([ModelShape()], 40, max_num_waiting=9999))
    for i in range(1100):
        world.add(f"r{i}", 0, 2, max_tokens=1, tenant=f"t{i}")
    world.run()
    assert len(world.ends) == 1100


def test_one_model_takes_memory_that_another_does_not_use():
    world = warmed(ModelsWorld([ModelShape(1, 4), ModelShape(1, 4)], 10))
    for i in range(8):
        world.add(f"r{i}", 0, 15, max_tokens=1)
    world.step()
    assert world.managers[0].account.num_slabs == 7
    world.run()
    for i in range(8):
        world.add(f"s{i}", 1, 15, max_tokens=1)
    world.step()
    assert world.managers[1].account.num_slabs == 7
    world.run()
    world.check_tokens()


def test_sequences_of_another_model_that_rank_last_give_way():
    policy = PolicyConfig("priority")
    world = warmed(ModelsWorld([ModelShape(1, 4), ModelShape(1, 4)], 6, policy))
    for i in range(4):
        world.add(f"low{i}", 0, 15, max_tokens=20, priority=1)
    for _ in range(3):
        world.step()
    world.add("high", 1, 40, max_tokens=4, priority=0)
    for _ in range(8):
        world.step()
    assert world.ends["high"].error is None
    world.run()
    assert len(world.ends) == 5
    world.check_tokens()


def test_models_that_do_not_fit_together_take_turns_on_the_device():
    world = ModelsWorld([ModelShape(4), ModelShape(4), ModelShape(4)], 10)
    for i in range(9):
        world.add(f"r{i}", i % 3, 6, max_tokens=6)
    world.run()
    assert len(world.ends) == 9
    assert all(end.error is None for end in world.ends.values())
    world.check_tokens()
    assert world.device.num_loads >= 3
    assert any(end.timing.load_s > 0 for end in world.ends.values())


def test_a_model_that_must_go_has_its_running_requests_parked_and_not_cancelled():
    world = ModelsWorld([ModelShape(4), ModelShape(4)], 7, num_slots=(64, 0))
    world.add("a", 0, 6, max_tokens=40)
    world.add("b", 1, 6, max_tokens=40)
    world.run()
    assert all(end.error is None for end in world.ends.values())
    assert sum(end.timing.num_preemptions for end in world.ends.values()) > 0
    world.check_tokens()


def test_a_load_that_fails_ends_only_the_requests_that_wait_for_it():
    world = ModelsWorld([ModelShape(2), ModelShape(2)], 12)
    world.add("a", 0, 6)
    world.run()
    world.scheduler.set_residence("m1", WeightState.COLD, None, world.now)
    while world.residency.state(1) is not WeightState.COLD or world.scheduler.num_moves:
        world.step()
    world.add("b", 0, 6, max_tokens=40)
    world.add("c", 1, 6)
    for _ in range(200):
        world.step(Random(1), load_fails=1.0)
        if "c" in world.ends:
            break
    error = world.ends["c"].error
    assert isinstance(error, Unavailable)
    assert error.message == (
        "model 'm1' could not be loaded; the device group's status and log say why"
    )
    assert error.retry_after_s
    fine, failed = world.scheduler.report().models
    assert (fine.problem, failed.problem) == ("", "the disk is gone")
    world.run()
    assert world.ends["b"].error is None
    world.check_tokens()


def test_a_person_s_wish_is_carried_out_after_what_runs_has_ended():
    world = warmed(ModelsWorld([ModelShape(2), ModelShape(2)], 12))
    world.add("a", 0, 6, max_tokens=5)
    world.step()
    world.scheduler.set_residence("m0", WeightState.COLD, None, world.now)
    world.add("late", 0, 6, max_tokens=5)
    world.run()
    assert world.ends["a"].timing.num_preemptions == 0
    assert world.ends["late"].error is None
    assert world.ends["late"].timing.load_s > 0


def test_a_model_that_nobody_asks_leaves_the_device():
    residency = ResidencyConfig(idle_s=10.0, host_bytes=10_000)
    world = warmed(ModelsWorld([ModelShape(2)], 12, residency=residency))
    world.add("a", 0, 6)
    world.run()
    for _ in range(10):
        world.step()
    assert world.residency.state(0) is WeightState.HOST
    world.add("b", 0, 6)
    world.run()
    world.check_tokens()


def test_another_group_s_model_is_refused_by_name():
    world = ModelsWorld([ModelShape()], 12)
    request = GenerationRequest("r", "other", (1, 2), SamplingParams(max_tokens=1))
    with pytest.raises(ModelNotFound, match="'other' is not served; served: m0"):
        world.scheduler.add(request, 0.0)


POLICIES = ("fcfs", "mlfq", "srw", "edf", "priority")


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_any_mix_of_models_ends_with_every_token_and_every_slab_back(seed, runs_ahead):
    rng = Random(seed)
    shapes = [
        ModelShape(rng.randint(1, 5), rng.randint(1, 9), min_slabs=rng.randint(0, 1))
        for _ in range(rng.randint(2, 4))
    ]
    world = ModelsWorld(
        shapes,
        max(s.weight_slabs for s in shapes) + rng.randint(6, 14),
        PolicyConfig(POLICIES[seed % len(POLICIES)]),
        num_slots=rng.choice([(0, 0), (64, 0), (16, 64)]),
        num_batches=1 if runs_ahead else rng.randint(1, 3),
        async_scheduling=runs_ahead,
        is_lazy=runs_ahead and seed % 2 == 0,
        max_num_seqs=rng.randint(2, 8),
        max_num_batched_tokens=rng.randint(8, 32),
        fairness=FairnessConfig(rng.choice([None, 3.0])),
        residency=ResidencyConfig(
            idle_s=rng.choice([None, 30.0]), host_bytes=rng.choice([0, 9999])
        ),
        transfer_timeout_s=1e9,
    )
    for i in range(25):
        model = rng.randrange(len(shapes))
        longest = min(24, shapes[model].blocks_per_slab * 4 * 3)
        num_prompt = rng.randint(1, longest - 2)
        world.add(f"r{i}", model, num_prompt, rng.randint(1, longest - num_prompt),
                  priority=rng.randint(0, 1), tenant=rng.choice("xy"))  # fmt: skip
        for _ in range(rng.randint(0, 4)):
            world.step(rng, fails=0.1)
        if rng.random() < 0.1:
            world.scheduler.cancel(f"r{rng.randrange(i + 1)}")
        world.slabs.check_invariants()
    world.run(20_000, rng=rng, fails=0.1)
    world.check_tokens()
    assert len(world.ends) == 25
    assert all(not isinstance(end.error, Unavailable) for end in world.ends.values())
    assert world.scheduler._pool.num_slots == 0
    assert not world.scheduler._pool.sequences
    for kv in world.managers:
        kv.check_invariants()
        assert kv.account.num_slabs == kv.account.num_idle


def test_an_iteration_whose_weights_did_not_come_after_all_is_computed_again():
    world = warmed(ModelsWorld([ModelShape(), ModelShape()], 16))
    world.add("a", 0, 6)
    world.add("b", 0, 3)
    output = world.scheduler.schedule(world.now)
    failed = StepResult(output.step, (), "the disk is gone")
    assert world.scheduler.update_from_output(output, failed, world.now) == []
    world.device.move(world.scheduler.take_orders())
    world.device.execute(output)
    world.run()
    assert [end.timing.num_preemptions for end in world.ends.values()] == [1, 1]
    world.check_tokens()
