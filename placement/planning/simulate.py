"""What a given placement would do with an input's workload."""

from collections.abc import Callable
from pathlib import Path

from placement.config.placed import load_placement
from placement.config.schema import PlanInput
from placement.planning.problem import planning_of
from placement.planning.report import ServingReport
from placement.planning.serving import serve


def simulate_plan(
    inputs: PlanInput, plan: Path, progress: Callable[[str, float], None]
) -> ServingReport:
    """Serve all of an input's training requests by a plan's groups, iteration by iteration.

    Args:
        inputs: The workload, devices and costs.
        plan: The file, as ``fabric-plan plan`` writes it.
        progress: Told what is being done.

    Raises:
        ConfigError: A file is wrong, or a group doesn't hold its models.
    """
    planning = planning_of(inputs)
    situation = planning.situation
    budgets = {
        kind.name: int(kind.memory_bytes * inputs.serving.memory_share)
        for kind in situation.inventory.types
    }
    placement = load_placement(plan, situation.names, budgets)
    progress("simulating", 0.0)
    return serve(situation, placement, planning.training, inputs.workload.seed)
