"""A fabric that really runs, measured from outside: its processes, its cores and its answers.

`fabric serve` runs in processes of its own. Where there are two cores, the device group has one to
itself, and the router, Ray and this client share the other one.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cpu_quota import pin

from fabric.client import AsyncClient, Completed, RetryPolicy, SequenceDelta
from fabric.core.request import LoadReport
from placement.simulator.outcome import Outcome
from placement.workload.trace import Trace

COMMAND = (sys.executable, "-c", "from fabric.cli import main; main()")
GROUP = "g0"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
END_TIMEOUT_S = 60.0
LEAVE_S = 5.0
REPORT_S = 0.6
# Ids below are special tokens of some models; all models have those up to the last.
TOKEN_IDS = (100, 2000)


@dataclass(frozen=True)
class Answered:
    """Seconds of a request's first token and of its end after its arrival, and its tokens."""

    ttft_s: float
    e2e_s: float
    num_tokens: int


@dataclass(frozen=True)
class CoreTimes:
    """What the device group's core has done, in seconds: all of it, the group's, and steal."""

    at_s: float
    busy_s: float
    group_s: float
    stolen_s: float

    def others_share(self, before: "CoreTimes") -> float:
        """The share of the time since then that others had of the core."""
        taken = (self.busy_s - before.busy_s) - (self.group_s - before.group_s)
        stolen = self.stolen_s - before.stolen_s
        return max(0.0, taken + stolen) / (self.at_s - before.at_s)


@dataclass(frozen=True)
class RunningFabric:
    """A fabric with one device group; ``core`` is the group's own, None where there is one core."""

    target: str
    group_pid: int
    core: int | None

    def measure(self, trace: Trace) -> Outcome:
        """Send a trace's requests when they arrive, whatever has become of the others."""
        return asyncio.run(_replay(self.target, trace))

    def set_policy(self, name: str) -> None:
        """Schedule by another policy from now on."""
        asyncio.run(_set_policy(self.target, name))

    def load(self) -> LoadReport:
        """What the group says of itself."""
        return asyncio.run(_load(self.target))

    def core_times(self) -> CoreTimes:
        """What the group's core has done until now; nothing is known where it has none."""
        group_s = _group_seconds(self.group_pid)
        if self.core is None:
            return CoreTimes(time.monotonic(), group_s, group_s, 0.0)
        fields = _core_fields(self.core)
        busy, stolen = sum(fields[:3]) + sum(fields[5:7]), fields[7]
        return CoreTimes(time.monotonic(), busy, group_s, stolen)


def group_core() -> int | None:
    """The core that a device group gets for itself; None where there is but one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1] if len(cores) > 1 else None


@contextmanager
def running_fabric(config: Path) -> Iterator[RunningFabric]:
    """Serve a configuration with one device group, in processes that end with this."""
    log = config.with_suffix(".log")
    started: dict[int, int] = {}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "serve", str(config)], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " at " not in line:
                raise RuntimeError(f"the fabric did not start; see {log}: {log.read_text()}")
            started = _below(process.pid)
            yield _place(line.split(" at ")[1].split(";")[0], set(started))
        finally:
            _end(process, started | _below(process.pid))


@contextmanager
def client_cores(core: int | None) -> Iterator[None]:
    """Keep this process off a core, and give it back afterwards."""
    cores = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, cores - {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _place(target: str, pids: set[int]) -> RunningFabric:
    """Give the group its core, and the others the rest."""
    (group,) = (pid for pid in pids if f"group-{GROUP}".encode() in _read(pid, "cmdline"))
    core = group_core()
    if core is not None:
        (other, *_) = sorted(os.sched_getaffinity(0) - {core})
        for pid in pids - {group}:
            with suppress(OSError):
                pin([pid], other)
        pin([group], core)
    return RunningFabric(target, group, core)


def _end(process: "subprocess.Popen[str]", started: Mapping[int, int]) -> None:
    """End `fabric serve`, and then whatever of its processes it left."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline_s = time.monotonic() + LEAVE_S
    while left := [pid for pid, start in started.items() if _start_of(pid) == start]:
        if time.monotonic() > deadline_s:
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)


async def _replay(target: str, trace: Trace) -> Outcome:
    """Every request is a task of its own, so that none waits for another one's answer."""
    async with AsyncClient(target, retry=RetryPolicy(max_attempts=1)) as client:
        await client.models()
        loop = asyncio.get_running_loop()
        start_s = loop.time() + 0.2
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_ask(client, trace, number, start_s))
                for number in range(len(trace))
            ]
    answers = [task.result() for task in tasks]
    return Outcome(
        trace,
        np.array([answer.ttft_s for answer in answers]),
        np.array([answer.e2e_s for answer in answers]),
        np.array([answer.num_tokens for answer in answers], dtype=np.int32),
        np.zeros(len(answers), dtype=np.int32),
    )


async def _ask(client: AsyncClient, trace: Trace, number: int, start_s: float) -> Answered:
    loop = asyncio.get_running_loop()
    arrival_s = start_s + float(trace.arrivals_s[number])
    tokens = np.random.default_rng(number).integers(*TOKEN_IDS, int(trace.prompt_tokens[number]))
    await asyncio.sleep(max(0.0, arrival_s - loop.time()))
    first_s, num_tokens = float("nan"), 0
    stream = client.stream(
        trace.names[int(trace.models[number])],
        tokens.tolist(),
        max_tokens=int(trace.output_tokens[number]),
        ignore_eos=True,
        seed=number,
    )
    async for event in stream:
        if isinstance(event, SequenceDelta):
            if not num_tokens:
                first_s = loop.time() - arrival_s
            num_tokens += len(event.token_ids)
        elif isinstance(event, Completed):
            return Answered(first_s, loop.time() - arrival_s, num_tokens)
    raise RuntimeError("a stream ended without an end")


async def _set_policy(target: str, name: str) -> None:
    async with AsyncClient(target) as client:
        for change in await client.set_policy(name):
            assert not change.error, change


async def _load(target: str) -> LoadReport:
    async with AsyncClient(target) as client:
        # Reports come a few times a second.
        await asyncio.sleep(REPORT_S)
        return (await client.status()).groups[0].load


def _below(root: int) -> dict[int, int]:
    """The processes that a process started, directly or not, and itself; when each began."""
    parents = {
        int(entry.name): int(stat[1])
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (stat := _stat(int(entry.name)))
    }
    found, size = {root}, 0
    while len(found) > size:
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return {pid: _start_of(pid) for pid in found}


def _start_of(pid: int) -> int:
    """When a process began, in ticks; 0 if it has ended. Ids are used again, these are not."""
    stat = _stat(pid)
    return int(stat[19]) if stat and stat[0] != b"Z" else 0


def _stat(pid: int) -> list[bytes]:
    """The fields of a process's stat from its state on."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _group_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _core_fields(core: int) -> list[float]:
    """Seconds: user, nice, system, idle, iowait, irq, softirq, steal and so on."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            return [int(tick) / TICKS_PER_S for tick in ticks]
    raise RuntimeError(f"/proc/stat doesn't know core {core}")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        # It has ended meanwhile.
        return b""
