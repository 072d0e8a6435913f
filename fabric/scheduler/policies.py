"""The policies by name, and what each can be told."""

from dataclasses import dataclass
from typing import Literal, get_args

from fabric.core.errors import ConfigError
from fabric.core.profile import Profiles
from fabric.scheduler.baselines import Orca, PriorityPolicy, RequestLevel
from fabric.scheduler.edf import EDF
from fabric.scheduler.lengths import LengthEstimator
from fabric.scheduler.mlfq import MLFQ, NaiveMLFQ
from fabric.scheduler.policy import FCFS, Policy
from fabric.scheduler.quanta import Quanta, Starvation
from fabric.scheduler.srw import SRW, Restraint

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
    alpha_load: float = 1.0
    ageing: float = 0.05
    min_run_s: float = 0.03

    def __post_init__(self) -> None:
        if self.name not in get_args(PolicyName):
            raise ConfigError(
                f"policy is {self.name!r}; allowed: {', '.join(get_args(PolicyName))}"
            )
        if self.quantum_s is not None and self.quantum_s <= 0.0:
            raise ConfigError(f"quantum_s is {self.quantum_s}; it must be above 0")
        if self.quantum_ratio <= 1.0:
            raise ConfigError(f"quantum_ratio is {self.quantum_ratio}; it must be above 1")
        for name in ("alpha_s", "alpha_load", "ageing", "min_run_s"):
            if getattr(self, name) < 0.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be below 0")


def make_policy(
    config: PolicyConfig, profiles: Profiles, max_num_seqs: int, lengths: LengthEstimator
) -> Policy:
    """The policy that a configuration names.

    Args:
        config: Its name and numbers.
        profiles: How long iterations of each model take on this device group.
        max_num_seqs: Sequences that one iteration computes at most.
        lengths: What outputs that ended were like.
    """
    match config.name:
        case "mlfq":
            return MLFQ(*_queues(config, profiles), profiles, max_num_seqs)
        case "naive_mlfq":
            quanta, starvation = _queues(config, profiles)
            fixed = Starvation(starvation.alpha_s, alpha_load=0.0)
            return NaiveMLFQ(quanta, fixed, profiles, max_num_seqs)
        case "srw":
            restraint = Restraint(config.ageing, config.min_run_s)
            return SRW(restraint, lengths, profiles, max_num_seqs)
        case "edf":
            return EDF()
        case "priority":
            return PriorityPolicy()
        case "orca":
            return Orca()
        case "static":
            return RequestLevel()
        case "fcfs":
            return FCFS()


def _queues(config: PolicyConfig, profiles: Profiles) -> tuple[Quanta, Starvation]:
    # Queues are the whole group's: a quantum is as long for every model.
    shortest_s = min(profile.min_iteration_s for profile in profiles.values())
    first_s = shortest_s if config.quantum_s is None else config.quantum_s
    return (
        Quanta.geometric(first_s, config.quantum_ratio),
        Starvation(config.alpha_s, config.alpha_load),
    )
