"""What the routers have told: where they are, which directory they follow, whom they reach."""

from fabric.serve.directory import RouterAddress, RouterReport

# A router tells of itself every second.
SILENT_S = 5.0
FORGET_S = 60.0


class Routers:
    """The routers of a fabric; those that are silent are not waited for, and later forgotten."""

    def __init__(self) -> None:
        self._reports: dict[str, RouterReport] = {}
        self._heard_s: dict[str, float] = {}
        self.addresses: tuple[RouterAddress, ...] = ()

    def note(self, report: RouterReport, now: float) -> bool:
        """Take a router's word; True if it changes where routers serve."""
        self._reports[report.router_id] = report
        self._heard_s[report.router_id] = now
        for router_id in [r for r, heard_s in self._heard_s.items() if now - heard_s > FORGET_S]:
            del self._reports[router_id], self._heard_s[router_id]
        before, self.addresses = self.addresses, self._merged(now)
        return self.addresses != before

    @property
    def newest_plan(self) -> tuple[str, ...]:
        """The plan of the newest directory that any of them follows."""
        newest = max(self._reports.values(), key=lambda report: report.version, default=None)
        return newest.plan if newest is not None else ()

    def reach(self, groups: set[str], now: float) -> bool:
        """Whether all of them can send requests to all of the groups."""
        return all(groups <= set(report.ready) for report in self._alive(now))

    def follow(self, version: int, now: float) -> bool:
        """Whether all of them follow a directory, or a later one."""
        return all(report.version >= version for report in self._alive(now))

    def _merged(self, now: float) -> tuple[RouterAddress, ...]:
        """One for each address: routers on several nodes may have the same one, as 0.0.0.0."""
        is_ready: dict[str, bool] = {}
        for report in self._alive(now):
            address = report.router.address
            is_ready[address] = is_ready.get(address, True) and report.router.is_ready
        return tuple(RouterAddress(address, is_ready[address]) for address in sorted(is_ready))

    def _alive(self, now: float) -> list[RouterReport]:
        return [
            report
            for router_id, report in self._reports.items()
            if now - self._heard_s[router_id] <= SILENT_S
        ]
