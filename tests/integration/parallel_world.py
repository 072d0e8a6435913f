"""Ranks as processes: each runs commands that the test sends it, and can be killed or stopped."""

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from fabric.core.plan import ParallelConfig
from fabric.parallel.formation import GroupSettings, join, make_group
from fabric.parallel.group import Group
from fabric.parallel.mesh import Axis, Device, Mesh
from fabric.parallel.rendezvous import Rendezvous
from fabric.parallel.rendezvous_server import RendezvousServer

ANSWER_TIMEOUT_S = 60.0
SETTINGS = GroupSettings(timeout_s=20.0)

# Which host each rank is on: what makes the group one of shared memory, of TCP, or of both.
LAYOUTS = {
    "shm": lambda size: ["a"] * size,
    "gloo": lambda size: [f"host-{rank}" for rank in range(size)],
    "hierarchical": lambda size: ["ab"[rank % 2] for rank in range(size)],
}

Work = Callable[..., Any]


@dataclass(frozen=True)
class Place:
    """What a process needs to form the group of all ranks."""

    hosts: list[str]
    rank: int
    address: tuple[str, int]
    epoch: int
    settings: GroupSettings = SETTINGS

    def mesh(self) -> Mesh:
        devices = tuple(Device(host, i) for i, host in enumerate(self.hosts))
        return Mesh(ParallelConfig(tensor=len(devices)), devices)


@dataclass(frozen=True)
class Failure:
    """An error in a rank, and how long the command took until then."""

    kind: str
    message: str
    rank: int | None
    after_s: float


class RankProcess:
    """One process; ``start`` sends it a command, ``result`` waits for what comes of it."""

    def __init__(self, context: Any) -> None:
        self._connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def start(self, work: Work, *arguments: object) -> None:
        self._connection.send((work, arguments))

    def result(self) -> Any:
        if not self._connection.poll(ANSWER_TIMEOUT_S):
            raise TimeoutError(f"process {self.pid} doesn't answer")
        return pickle.loads(self._connection.recv_bytes())

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self._connection.close()


class World:
    """A rendezvous and the processes that meet there."""

    def __init__(self, server: RendezvousServer, processes: list[RankProcess]) -> None:
        self.server = server
        self.processes = processes
        self.epoch = 0

    def form(self, layout: str, settings: GroupSettings = SETTINGS) -> None:
        """Let all processes leave their group and form a new one, in a new epoch."""
        self.epoch += 1
        self.server.raise_epoch(self.epoch)
        hosts = LAYOUTS[layout](len(self.processes))
        for rank, process in enumerate(self.processes):
            place = Place(hosts, rank, self.server.address, self.epoch, settings)
            process.start(_form, place)
        assert self.results() == [None] * len(self.processes)

    def run(self, work: Work, *arguments: object) -> list[Any]:
        """What ``work(group, *arguments)`` returns on each rank."""
        self.start(work, *arguments)
        return self.results()

    def start(self, work: Work, *arguments: object, ranks: Sequence[int] | None = None) -> None:
        for rank in range(len(self.processes)) if ranks is None else ranks:
            self.processes[rank].start(work, *arguments)

    def results(self, ranks: Sequence[int] | None = None) -> list[Any]:
        chosen = range(len(self.processes)) if ranks is None else ranks
        return [self.processes[rank].result() for rank in chosen]


@contextmanager
def world(size: int) -> Iterator[World]:
    """Processes that belong to no group yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.parallel_world"])
    processes: list[RankProcess] = []
    with RendezvousServer() as server:
        try:
            processes.extend(RankProcess(context) for _ in range(size))
            yield World(server, processes)
        finally:
            for process in processes:
                process.close()


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Seat:
    """A process's part in a group."""

    def __init__(self) -> None:
        self._closing: list[Any] = []
        self.group: Group | None = None

    def take(self, place: Place) -> None:
        self.leave()
        rendezvous = Rendezvous(place.address, place.epoch, timeout_s=20.0)
        member = join(rendezvous, place.rank)
        self.group = make_group(place.mesh(), Axis.ALL, place.rank, rendezvous, place.settings)
        self._closing = [self.group, member, rendezvous]

    def leave(self) -> None:
        for part in self._closing:
            part.close()
        self._closing = []


def _form(seat: _Seat, place: Place) -> None:
    seat.take(place)


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    seat = _Seat()
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        start = time.monotonic()
        try:
            result = work(seat if work is _form else seat.group, *arguments)
        except Exception as error:
            after_s = time.monotonic() - start
            rank = getattr(error, "rank", None)
            result = Failure(type(error).__name__, str(error), rank, after_s)
        # Not by send: that would share tensors' memory by files.
        connection.send_bytes(pickle.dumps(result))
