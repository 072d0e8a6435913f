"""The iteration-level simulator: the engine's own decisions, closed forms, and all accounted."""

import pytest

from fabric.scheduler.output import SchedulerOutput
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.settings import ResidencyConfig, SchedulerConfig
from placement.simulator.iteration_level import RouterModel, SimulatedGroup, simulate_in_detail
from placement.workload.trace import Trace
from tests.unit.simulated_world import MIB, cost, group, poisson, scheduled_by_engine


def scheduled_by_simulator(
    simulated: SimulatedGroup, requests: Trace
) -> list[tuple[float, SchedulerOutput]]:
    seen: list[tuple[float, SchedulerOutput]] = []
    simulate_in_detail(
        (simulated,),
        requests,
        RouterModel(),
        observe=lambda output, now: seen.append((now, output)),
    )
    return seen


@pytest.mark.parametrize(
    ("policy", "num_stages", "memory_mib"),
    [("fcfs", 1, 150), ("mlfq", 3, 150), ("srw", 1, 196), ("mlfq", 1, 196), ("fcfs", 3, 196)],
)
def test_the_engine_schedules_the_same_iterations_at_the_same_times(policy, num_stages, memory_mib):
    """Also where KV is parked and dropped, and, in the smaller memory, models take turns."""
    costs = [
        cost(num_stages=num_stages, overhead_s=0.001 * i, load_s=0.05, fetch_s=0.1)
        for i in range(3)
    ]
    config = SchedulerConfig(
        max_num_seqs=8,
        max_num_batched_tokens=128,
        policy=PolicyConfig(policy),
        residency=ResidencyConfig(host_bytes=2048 * MIB),
    )
    simulated = group(costs, memory_mib, scheduler=config, host_bytes=64 * MIB)
    requests = poisson(12.0, 60, num_models=3)
    found = scheduled_by_simulator(simulated, requests)
    assert len(found) > 300
    assert found == scheduled_by_engine(simulated, requests)
