"""Limits what processes may take of the processors, through control groups of either version."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

PERIOD_US = 10_000
ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "cpu,cpuacct")


class QuotaError(Exception):
    """No control group can be made or written here."""


class CpuQuota(Protocol):
    """A control group: processes in it take ``num_cores`` at most; None: as much as there is."""

    def limit(self, num_cores: float | None) -> None: ...

    def add(self, pid: int) -> None: ...

    def close(self) -> None: ...


class CpuGroupV1:
    """cpu.cfs_quota_us of a hierarchy of version 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))

    def limit(self, num_cores: float | None) -> None:
        quota = -1 if num_cores is None else round(num_cores * PERIOD_US)
        (self._folder / "cpu.cfs_quota_us").write_text(str(quota))

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        _empty(self._folder)


class CpuGroupV2:
    """cpu.max of the one hierarchy of version 2."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder.parent / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir()

    def limit(self, num_cores: float | None) -> None:
        quota = "max" if num_cores is None else round(num_cores * PERIOD_US)
        (self._folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        _empty(self._folder)


def open_quota(name: str, root: Path = ROOT, membership: str | None = None) -> CpuQuota:
    """Make a control group below the one that this process is in.

    Args:
        name: Of the group; this process's id is added.
        root: Where the hierarchies are mounted.
        membership: What /proc/self/cgroup says; None: read it.

    Raises:
        QuotaError: None can be made, or not by this user.
    """
    text = Path("/proc/self/cgroup").read_text() if membership is None else membership
    paths = dict(line.split(":", 2)[1:] for line in text.splitlines())
    leaf = f"{name}-{os.getpid()}"
    try:
        for controllers in V1_CONTROLLERS:
            if controllers in paths and (root / controllers).is_dir():
                return CpuGroupV1(root / controllers / paths[controllers].strip("/") / leaf)
        if "" in paths and (root / "cgroup.controllers").exists():
            return CpuGroupV2(root / paths[""].strip("/") / leaf)
    except OSError as error:
        raise QuotaError(f"no control group can be made: {error}") from error
    raise QuotaError(f"no processor controller is mounted at {root}")


def add_all(quota: CpuQuota, pids: Iterable[int]) -> None:
    """Put processes into a group.

    Raises:
        QuotaError: The system refuses.
    """
    try:
        for pid in pids:
            quota.add(pid)
    except OSError as error:
        raise QuotaError(f"processes can't be put into a control group: {error}") from error


def pin(pids: Iterable[int], core: int) -> None:
    """Let all threads that processes have now, and those that they start, run on one core."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def _empty(folder: Path) -> None:
    """Remove a group; processes that are ending leave it soon."""
    deadline_s = time.monotonic() + 5.0
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return
