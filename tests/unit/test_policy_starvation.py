"""A stream of short requests, each of which would go first, can't hold a long one for ever."""

from dataclasses import dataclass

import pytest

from fabric.core.profile import Profile
from fabric.scheduler.mlfq import MLFQ
from fabric.scheduler.policies import PolicyConfig
from tests.unit.policy_world import PolicyWorld

NUM_SLOTS = 4
ALPHA_S = 0.3
# An iteration of decodes takes 10 ms, a prompt token 1 ms more.
PROFILE = Profile(((1, 0.001), (2, 0.002)), ((1, 1, 0.01), (NUM_SLOTS, 1, 0.01)))


@dataclass
class Siege:
    """The waits of a long request between its iterations, when short ones come in each."""

    world: PolicyWorld
    longest_wait_s: float = 0.0
    longest_iteration_s: float = 0.0
    longest_alpha_s: float = 0.0
    num_runs: int = 0

    def run(self, num_per_iteration: int, num_iterations: int) -> None:
        world = self.world
        self.world.add("long", 60, 400)
        ran_s = 0.0
        for iteration in range(num_iterations):
            for number in range(num_per_iteration):
                world.add(f"short {iteration}.{number}", 4, 2)
            start_s = world.now
            if isinstance(world.policy, MLFQ):
                self.longest_alpha_s = max(self.longest_alpha_s, world.policy.alpha_s)
            self.longest_wait_s = max(self.longest_wait_s, start_s - ran_s)
            if "long" in world.step():
                ran_s = world.now
                self.num_runs += 1
            self.longest_iteration_s = max(self.longest_iteration_s, world.now - start_s)


# Two in each iteration are as many as there is room for, four are twice as many.
@pytest.mark.parametrize("num_per_iteration", [2, 4])
@pytest.mark.parametrize("alpha_load", [0.0, 1.0])
def test_mlfq_lets_a_long_request_run_after_alpha_and_a_round(
    alpha_load: float, num_per_iteration: int
) -> None:
    config = PolicyConfig("mlfq", alpha_s=ALPHA_S, alpha_load=alpha_load)
    siege = Siege(PolicyWorld(config, PROFILE, NUM_SLOTS))
    siege.run(num_per_iteration, 300)
    assert siege.num_runs > 1
    assert siege.longest_wait_s > ALPHA_S / 2, "nothing held it up"
    assert siege.longest_wait_s <= siege.longest_alpha_s + siege.longest_iteration_s
    if alpha_load == 0.0:
        assert siege.longest_alpha_s == ALPHA_S


def test_without_promotion_the_same_stream_does_hold_it() -> None:
    siege = Siege(PolicyWorld(PolicyConfig("mlfq", alpha_s=1e6), PROFILE, NUM_SLOTS))
    siege.run(4, 300)
    assert siege.num_runs == 0


def test_srw_lets_a_long_request_run_when_its_age_outweighs_its_work() -> None:
    siege = Siege(PolicyWorld(PolicyConfig("srw", ageing=2.0, min_run_s=0.0), PROFILE, NUM_SLOTS))
    siege.run(2, 300)
    assert siege.num_runs > 1
    # 400 tokens of 10 ms each at most, and a second of age is worth two of work: what comes more
    # than two seconds later ranks after it.
    assert siege.longest_wait_s <= 2.0 + siege.longest_iteration_s


def test_srw_without_ageing_does_not() -> None:
    siege = Siege(PolicyWorld(PolicyConfig("srw", ageing=0.0), PROFILE, NUM_SLOTS))
    siege.run(4, 300)
    assert siege.num_runs == 0
