"""A subject: an engine in a process of its own that is told what to generate, line by line."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from peers.protocol import Task

DRIVERS = Path(__file__).with_name("peers")
TIMEOUT_S = 1200.0
END_TIMEOUT_S = 20.0
LOG_TAIL = 4000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Launch:
    """How a subject is started: a driver, run by a Python that has its engine."""

    name: str
    python: str
    driver: str
    task: Task
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        return [self.python, str(DRIVERS / self.driver), json.dumps(asdict(self.task))]


@dataclass(frozen=True)
class Answer:
    """What generating took, and how many processors others used meanwhile.

    ``read_bytes_per_s`` is of the reads between steps, if there were any.
    """

    first_s: float
    total_s: float
    outside_s: float | None
    other_cpus: float
    read_bytes_per_s: float | None = None


class Subject:
    """A running engine. Between commands its processes are stopped: some of them spin else."""

    def __init__(self, launch: Launch, log: Path) -> None:
        """Start it, and wait for its first token.

        Raises:
            RuntimeError: It ended instead, or took too long.
        """
        self.name = launch.name
        self.peak_bytes = 0
        self._log = log
        start_s = time.perf_counter()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                launch.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment() | launch.environment,
                start_new_session=True,
            )
        self.facts = self._receive()
        self.startup_s = time.perf_counter() - start_s
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> "Subject":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, read_pattern: str = ""
    ) -> Answer:
        """Generate for prompts that are there at once; with reads of memory between our steps.

        Raises:
            RuntimeError: The process ended, or took too long.
        """
        command = {
            "prompts": [list(prompt) for prompt in prompts],
            "num_tokens": num_tokens,
            "read_pattern": read_pattern,
        }
        with self._running():
            before_s, start_s = self._others_s(), time.perf_counter()
            stdin = _open(self._process.stdin)
            stdin.write(json.dumps(command).encode() + b"\n")
            stdin.flush()
            times = self._receive()
            took_s = time.perf_counter() - start_s
            other_cpus = max(0.0, (self._others_s() - before_s) / took_s)
            if not read_pattern:  # what is read would count as well
                self.note_memory()
        return Answer(
            times["first_s"],
            times["total_s"],
            times.get("outside_s"),
            other_cpus,
            times.get("read_bytes_per_s"),
        )

    def note_memory(self) -> None:
        """Take the peak resident memory of all its processes in."""
        self.peak_bytes = max(self.peak_bytes, sum(_peak_bytes(pid) for pid in self._tree()))

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
        tree = self._tree()
        _open(self._process.stdin).close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        for pid in tree:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        _open(self._process.stdout).close()

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for pid in self._tree():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _others_s(self) -> float:
        return _busy_s() - sum(_cpu_s(pid) for pid in self._tree())

    def _tree(self) -> list[int]:
        return process_tree(self._process.pid)

    def _receive(self) -> dict[str, float]:
        stdout = _open(self._process.stdout)
        ready, _, _ = select.select([stdout], [], [], TIMEOUT_S)
        line = stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else "took too long"
            tail = self._log.read_text(errors="replace")[-LOG_TAIL:]
            raise RuntimeError(f"{self.name} {what}; its last words:\n{tail}")
        answer: dict[str, float] = json.loads(line)
        return answer


def _environment() -> dict[str, str]:
    """What is not about threads, of which each launch has its own."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def process_tree(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(folder.name)):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may hold anything: state, parent and so on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS_PER_S if fields else 0.0


def _busy_s() -> float:
    """What all processors have done, time stolen from a virtual machine included."""
    user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(ticks) for ticks in (user, nice, system, *rest[:3])) / TICKS_PER_S


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
