"""Attainment as one thing is swept: devices, rate, burstiness, objectives.

Source: AlpaServe (Li et al., OSDI 2023), section 6.2, whose figures sweep the same.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

from placement.config.changes import changed
from placement.config.schema import PlanInput
from placement.planning.compare import check_policies, held_out_by
from placement.planning.problem import planning_of
from placement.planning.report import Sweep, SweepPoint

DEFAULT_POLICIES = ("ours", "alpaserve", "selective-replication", "clockwork++")


def sweep(
    inputs: PlanInput,
    quantity: str,
    values: Sequence[float],
    policies: Sequence[str],
    progress: Callable[[str, float], None],
) -> Sweep:
    """Let each policy place the models anew at each value, and score it by unseen requests.

    Args:
        inputs: What stays as it is but for the quantity.
        quantity: ``devices``, ``rate``, ``cv`` or ``slo``, as :func:`changed` takes them.
        values: Of the quantity.
        policies: Their names, as for comparing.
        progress: Told what is being done.

    Raises:
        ConfigError: There is no such quantity, value or policy.
    """
    check_policies(policies)
    points = []
    for number, value in enumerate(values):
        planning = planning_of(changed(inputs, quantity, value))
        found = []
        for place, name in enumerate(policies):
            progress(
                f"{quantity} {value:g}, {name}", (number + place / len(policies)) / len(values)
            )
            found.append((name, fmean(held_out_by(planning, name))))
        points.append(SweepPoint(value, tuple(found)))
    return Sweep(quantity, tuple(points))
