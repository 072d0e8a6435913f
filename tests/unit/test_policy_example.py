"""FastServe's motivating example: three requests, one at a time, under four policies.

The paper gives the mean completion times of its figure: FCFS 4.23, naive MLFQ 5, skip-join MLFQ
3.3, SRPT 3 (first version, in units half as long: skip-join 20/3, with ends at 4, 5 and 11). These
fix the requests: a prompt of 5, 1 and 2 units and one decode each. FCFS is then 4.17 (25/6).

Source: FastServe (Wu et al., arXiv 2305.05920), section 4.1, the figure of the example.
"""

import pytest

from fabric.scheduler.policies import PolicyConfig
from tests.unit.policy_world import PolicyWorld

NUM_PROMPT_TOKENS = {"J1": 5, "J2": 1, "J3": 2}


def ends_under(name: str) -> dict[str, float]:
    world = PolicyWorld(PolicyConfig(name, alpha_s=1e6, ageing=0.0, min_run_s=0.0))  # type: ignore[arg-type]
    for job, num_prompt in NUM_PROMPT_TOKENS.items():
        # SRW with the true lengths is SRPT.
        world.add(job, num_prompt, 2, expected_tokens=2)
    world.run()
    return world.ends


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("fcfs", {"J1": 6.0, "J2": 8.0, "J3": 11.0}),
        ("naive_mlfq", {"J1": 9.0, "J2": 10.0, "J3": 11.0}),
        ("mlfq", {"J2": 4.0, "J3": 5.0, "J1": 11.0}),
        ("srw", {"J2": 2.0, "J3": 5.0, "J1": 11.0}),
    ],
)
def test_each_policy_ends_the_example_as_in_the_paper(name: str, ends: dict[str, float]) -> None:
    assert ends_under(name) == ends


def test_the_example_ranks_the_policies_as_the_paper_does() -> None:
    means = [
        sum(ends_under(name).values()) / 3 / 2 for name in ("srw", "mlfq", "fcfs", "naive_mlfq")
    ]
    assert means == sorted(means)
    assert means == pytest.approx([3.0, 3.3, 4.23, 5.0], abs=0.07)
