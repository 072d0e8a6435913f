"""Which device groups there are, which of them requests go to, and which are to leave."""

from collections.abc import Mapping
from dataclasses import replace

from fabric.config import FabricConfig, parse_config
from fabric.core.errors import FailedPrecondition
from fabric.core.plan import PlacementPlan
from fabric.core.request import Objectives
from fabric.router.catalog import GroupAddress
from fabric.serve.directory import GroupReport

# A group tells of itself every second.
SILENT_S = 10.0


class Roster:
    """The groups of the plan, those that are being started for another one, and the leaving.

    All names are those under which groups run. A group that is neither in the plan nor expected
    for the next one is retired: it finishes what it has. Without a plan, every group that tells of
    itself belongs to it.
    """

    def __init__(self, plan: Mapping[str, FabricConfig] | None) -> None:
        """Begin with a plan: for each group, a configuration with it alone."""
        self._is_open = plan is None
        self._plan: dict[str, FabricConfig | None] = dict(plan or {})
        self._staged: set[str] = set()
        self._leaving: set[str] = set()
        self._reports: dict[str, GroupReport] = {}
        self._heard_s: dict[str, float] = {}

    def note(self, report: GroupReport, now: float) -> bool:
        """Take a group's word; True if it changes where the groups of the plan are.

        An older epoch than the known one is ignored.
        """
        name = report.address.name
        known = self._reports.get(name)
        if known is not None and known.address.epoch > report.address.epoch:
            return False
        if self._is_open:
            self._plan.setdefault(name, None)
        is_named = name in self._plan and self._plan[name] is None
        if is_named:
            self._plan[name] = parse_config(report.config, f"device group {name}")
        self._reports[name] = report
        self._heard_s[name] = now
        return name in self._plan and (is_named or known is None or known.address != report.address)

    @property
    def plan(self) -> tuple[str, ...]:
        """The names of the plan's groups."""
        return tuple(sorted(self._plan))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all groups that run or are being started."""
        return tuple(sorted({*self._plan, *self._staged, *self._leaving, *self._reports}))

    @property
    def addresses(self) -> tuple[GroupAddress, ...]:
        """Where the plan's groups are, as far as they have told."""
        return tuple(self._reports[name].address for name in self.plan if name in self._reports)

    @property
    def models(self) -> Mapping[str, Objectives] | None:
        """The models of the plan; None while a group has not told what it hosts."""
        configs = list(self._plan.values())
        if self._is_open or None in configs:
            return None
        return {
            model.id: model.objectives.objectives()
            for config in configs
            if config is not None
            for model in config.models
        }

    def placement(self) -> PlacementPlan:
        """What runs, as a plan.

        Raises:
            FailedPrecondition: A group has not told yet what it hosts.
        """
        groups = []
        for name, config in sorted(self._plan.items()):
            if config is None:
                raise FailedPrecondition(f"device group {name} has not told yet what it hosts")
            (group,) = config.plan().groups
            groups.append(replace(group, instance=name))
        return PlacementPlan(tuple(groups))

    def bytes_of_model(self, model: str) -> int | None:
        """The bytes of a model's weights, if a group knows the model."""
        sizes = (report.weight_bytes.get(model, 0) for report in self._reports.values())
        return max(sizes, default=0) or None

    def has_told(self, name: str) -> bool:
        """Whether a group has told where it serves."""
        return name in self._reports

    def is_known(self, name: str) -> bool:
        """Whether a group belongs to the plan, or is being started for the next."""
        return self._is_open or name in self._plan or name in self._staged

    def is_retired(self, name: str) -> bool:
        """Whether a group is to finish what it has, and take nothing new."""
        return not self.is_known(name) and name not in self._leaving

    def num_streams(self, name: str) -> int:
        """Requests that a group has in flight, as it last told."""
        return self._reports[name].num_streams if name in self._reports else 0

    def is_idle(self, name: str, now: float) -> bool:
        """Whether a retired group has drained, or is not there any more."""
        report = self._reports.get(name)
        if report is None or now - self._heard_s[name] > SILENT_S:
            return True
        return report.is_draining and report.num_streams == 0

    def stage(self, names: set[str]) -> None:
        """Expect groups that are being started; what others of their names told is over."""
        for name in names:
            self.forget(name)
        self._staged |= names

    def set_plan(self, plan: Mapping[str, FabricConfig | None]) -> None:
        """Make these the plan's groups; others leave: nothing new goes to them."""
        self._leaving |= {name for name in self._plan if name not in plan}
        self._leaving -= set(plan)
        self._staged -= set(plan)
        self._plan = dict(plan)
        for name, config in plan.items():
            if config is None and name in self._reports:
                report = self._reports[name]
                self._plan[name] = parse_config(report.config, f"device group {name}")

    def retire(self) -> None:
        """Have the groups that leave drain: no router sends them anything any more."""
        self._leaving = set()

    def forget(self, name: str) -> None:
        """A group is removed."""
        self._reports.pop(name, None)
        self._heard_s.pop(name, None)
        self._leaving.discard(name)
        self._staged.discard(name)

    def plan_configs(self) -> dict[str, FabricConfig | None]:
        """The plan's groups, each with its configuration."""
        return dict(self._plan)
