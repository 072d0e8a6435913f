"""What the routers have told: where they are, which directory they follow, whom they reach."""

from fabric.serve.directory import RouterAddress, RouterReport

# A router tells of itself every second.
SILENT_S = 5.0


class Routers:
    """The routers of a fabric; those that are silent are not waited for."""

    def __init__(self) -> None:
        self._reports: dict[str, RouterReport] = {}
        self._heard_s: dict[str, float] = {}

    def note(self, report: RouterReport, now: float) -> bool:
        """Take a router's word; True if it is another than before about where it serves."""
        address = report.router.address
        known = self._reports.get(address)
        self._reports[address] = report
        self._heard_s[address] = now
        return known is None or known.router != report.router

    @property
    def addresses(self) -> tuple[RouterAddress, ...]:
        """Where they serve."""
        return tuple(report.router for report in self._reports.values())

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

    def _alive(self, now: float) -> list[RouterReport]:
        return [
            report
            for address, report in self._reports.items()
            if now - self._heard_s[address] <= SILENT_S
        ]
