"""The policies by name, and what each can be told."""

from dataclasses import dataclass
from typing import Literal, get_args

from fabric.core.errors import ConfigError
from fabric.core.profile import Profile
from fabric.scheduler.policy import FCFS, Policy

PolicyName = Literal["fcfs", "orca", "static", "priority", "edf", "mlfq", "naive_mlfq", "srw"]


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """A policy's name and the numbers that it goes by; those of other policies are ignored.

    MLFQ: queue i lasts ``quantum_s`` (None: the shortest iteration of the profile) times
    ``quantum_ratio`` to the i; who waits longer than alpha starts again in the first queue, where
    alpha is ``alpha_s``, or ``alpha_load`` times the recent mean time from arrival to end if that
    is more (0: alpha stays fixed). SRW: waiting for a second counts like ``ageing`` seconds less
    work; ``min_run_s`` after it began to run, nobody takes a sequence's place.
    """

    name: PolicyName = "fcfs"
    quantum_s: float | None = None
    quantum_ratio: float = 2.0
    alpha_s: float = 0.3
    alpha_load: float = 2.0
    ageing: float = 0.1
    min_run_s: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in get_args(PolicyName):
            raise ConfigError(
                f"policy is {self.name!r}; allowed: {', '.join(get_args(PolicyName))}"
            )


def make_policy(config: PolicyConfig, profile: Profile, max_num_seqs: int) -> Policy:
    """The policy that a configuration names.

    Args:
        config: Its name and numbers.
        profile: How long iterations take on this device group.
        max_num_seqs: Sequences that one iteration computes at most.
    """
    if config.name == "fcfs":
        return FCFS()
    raise NotImplementedError(config.name)
