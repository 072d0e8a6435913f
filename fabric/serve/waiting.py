"""Which device groups Ray can't place yet, and what they wait for."""

import re
from collections import Counter

from ray.util.placement_group import placement_group_table

# Serve names a replica's placement group for its application, deployment and a suffix.
DEPLOYMENT = re.compile(r"#group-(?P<group>[^#]+)#[^#]*$")
UNPLACED = ("PENDING", "RESCHEDULING")


def waiting_groups() -> dict[str, str]:
    """What each group waits for whose placement group has no place on the nodes that are alive."""
    waiting = {}
    for placement in placement_group_table().values():
        found = DEPLOYMENT.search(placement["name"])
        if found and placement["state"] in UNPLACED:
            waiting[found["group"]] = f"waits for nodes with {_wanted(placement['bundles'])}"
    return waiting


def _wanted(bundles: dict[int, dict[str, float]]) -> str:
    counts = Counter(
        ", ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()))
        for bundle in bundles.values()
    )
    return " + ".join(f"{count} x ({bundle})" for bundle, count in counts.items())
