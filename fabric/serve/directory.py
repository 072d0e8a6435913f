"""What the processes of a fabric tell their controller, and what it tells them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.core.plan_steps import PlanProgress
from fabric.core.request import Objectives
from fabric.router.catalog import GroupAddress
from fabric.rpc.frames import Failure
from fabric.serve.launch import group_part


@dataclass(frozen=True, slots=True)
class LoadingStage:
    """How far a device group's start is: a stage's name, and done of total units."""

    stage: str
    done: int = 0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class GroupReport:
    """Where a device group serves, as what, and what it has in flight.

    ``config`` is the tree of a configuration with this group alone. Bytes of ``weight_bytes`` are
    of whole models, over all of its devices.
    """

    address: GroupAddress
    config: dict[str, object]
    num_streams: int = 0
    is_draining: bool = False
    weight_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """Where a router serves, and whether every configured model answers through it."""

    address: str
    is_ready: bool


@dataclass(frozen=True, slots=True)
class RouterReport:
    """A router, the directory that it follows, and the device groups that it can reach.

    ``router_id`` is this process's alone, also where several have one address. ``plan`` is that
    directory's: a restarted controller knows from it what the plan is.
    """

    router_id: str
    router: RouterAddress
    version: int = -1
    plan: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Directory:
    """What the controller knows.

    ``version`` grows with every change of addresses, and from one controller to the next;
    ``plan`` names the groups that requests go to, whether they serve or not, and ``models`` their
    models with the objectives of each; None: not known. ``loading`` has a stage for each group
    that is being started, ``failures`` a reason for each part (such as "router" or "group g0")
    whose last start failed.
    """

    version: int = 0
    groups: tuple[GroupAddress, ...] = ()
    plan: tuple[str, ...] = ()
    models: Mapping[str, Objectives] | None = None
    routers: tuple[RouterAddress, ...] = ()
    loading: dict[str, LoadingStage] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def reasons(self) -> dict[str, str]:
        """Why groups don't serve, by name, as far as they have told."""
        reasons = {name: f"is being started: {stage.stage}" for name, stage in self.loading.items()}
        for name in {*reasons, *(group.name for group in self.groups)}:
            if failure := self.failures.get(group_part(name)):
                reasons[name] = f"could not be started: {failure}"
        return reasons


@dataclass(frozen=True, slots=True)
class PlanNews:
    """What there is to tell of a plan that is being applied, after what was told before.

    With ``is_ended`` nothing follows; ``failure`` says why it was not applied.
    """

    progress: tuple[PlanProgress, ...] = ()
    is_ended: bool = False
    failure: Failure | None = None
