"""All-reduce in groups of processes on this host: ours against torch's gloo and Ray's.

Rounds are interleaved over the backends; each figure is the median over rounds of the median
time of a call. Run: python tests/perf/collectives.py [--json FILE] [--ray] [--rounds N]
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import describe_machine, verdict
from torch import Tensor

from fabric.core.plan import ParallelConfig
from fabric.parallel.formation import join, make_group
from fabric.parallel.mesh import Axis, Device, Mesh
from fabric.parallel.rendezvous import Rendezvous
from fabric.parallel.rendezvous_server import RendezvousServer

SIZES_KB = (8, 32, 128, 512, 2048, 8192)
NUM_RANKS = (2, 4)
# Bars of two ranks: shared memory against torch's gloo.
BARS = {8: ("shm_speedup_8KB", 5.0), 2048: ("shm_speedup_2MB", 2.0)}
BACKENDS = ("shm", "gloo_group", "hierarchical", "torch_gloo")
HOSTS = {
    "shm": lambda rank: "a",
    "gloo_group": lambda rank: f"host-{rank}",
    "hierarchical": lambda rank: "ab"[rank % 2],
}

AllReduce = Callable[[Tensor], None]


@dataclass(frozen=True)
class Setting:
    backend: str
    size: int
    rank: int
    address: tuple[str, int]


def time_calls(all_reduce: AllReduce, size_kb: int) -> float:
    """Median seconds of a call, of fewer calls the larger they are."""
    x = torch.zeros(size_kb * 256)
    num_calls = max(10, min(300, 20_000 // size_kb))
    for _ in range(max(3, num_calls // 10)):
        all_reduce(x)
    times = []
    for _ in range(num_calls):
        start = time.perf_counter()
        all_reduce(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def connect(setting: Setting) -> tuple[AllReduce, list[Any]]:
    """The backend's all-reduce, and what must live as long as it is used."""
    rendezvous = Rendezvous(setting.address, epoch=0, timeout_s=60.0)
    if setting.backend == "torch_gloo":
        host, port = rendezvous.get("store").decode().split()
        store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False)
        gloo: Any = dist.ProcessGroupGloo
        ranks = gloo(store, setting.rank, setting.size, timedelta(seconds=60))
        return lambda x: ranks.allreduce([x]).wait(), [store, rendezvous]
    member = join(rendezvous, setting.rank)
    host_of = HOSTS[setting.backend]
    devices = tuple(Device(host_of(rank), rank) for rank in range(setting.size))
    mesh = Mesh(ParallelConfig(tensor=setting.size), devices)
    group = make_group(mesh, Axis.ALL, setting.rank, rendezvous)
    return group.all_reduce, [group, member, rendezvous]


def serve(setting: Setting, connection: Connection) -> None:
    """Time the sizes that are asked for."""
    torch.set_num_threads(1)
    all_reduce, _kept = connect(setting)
    connection.send(None)
    while (size_kb := connection.recv()) is not None:
        connection.send(time_calls(all_reduce, size_kb))


class Gang:
    """Processes of one backend."""

    def __init__(self, backend: str, size: int) -> None:
        self._server = RendezvousServer()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "fabric.parallel.formation"])
        self._connections = []
        self._processes = []
        if backend == "torch_gloo":
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            with Rendezvous(self._server.address, epoch=0) as rendezvous:
                rendezvous.set("store", f"127.0.0.1 {self._store.port}".encode())
        for rank in range(size):
            ours, theirs = context.Pipe()
            setting = Setting(backend, size, rank, self._server.address)
            process = context.Process(target=serve, args=(setting, theirs), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        for connection in self._connections:
            connection.recv()

    def time(self, size_kb: int) -> float:
        for connection in self._connections:
            connection.send(size_kb)
        return statistics.median(connection.recv() for connection in self._connections)

    def close(self) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.kill()
            process.join()
            connection.close()
        self._server.close()


class RayGang:
    """Actors in a collective group of Ray."""

    def __init__(self, size: int) -> None:
        import ray
        from ray.util import collective

        name = f"perf-{size}"

        @ray.remote(num_cpus=0)
        class Member:
            def time(self, size_kb: int) -> float:
                torch.set_num_threads(1)
                return time_calls(lambda x: collective.allreduce(x, name), size_kb)

        self._ray = ray
        self._members = [Member.remote() for _ in range(size)]
        collective.create_collective_group(
            self._members, size, list(range(size)), backend="gloo", group_name=name
        )

    def time(self, size_kb: int) -> float:
        calls = [member.time.remote(size_kb) for member in self._members]
        return float(self._ray.get(calls)[0])

    def close(self) -> None:
        for member in self._members:
            self._ray.kill(member)


def measure(size: int, num_rounds: int, *, with_ray: bool) -> dict[str, dict[int, float]]:
    """Seconds of each backend and size in KB."""
    gangs: dict[str, Gang | RayGang] = {backend: Gang(backend, size) for backend in BACKENDS}
    if with_ray:
        gangs["ray_gloo"] = RayGang(size)
    times: dict[str, dict[int, list[float]]] = {
        name: {size_kb: [] for size_kb in SIZES_KB} for name in gangs
    }
    for _ in range(num_rounds):
        for size_kb in SIZES_KB:
            for name, gang in gangs.items():
                times[name][size_kb].append(gang.time(size_kb))
    for gang in gangs.values():
        gang.close()
    return {
        name: {size_kb: statistics.median(seconds) for size_kb, seconds in by_size.items()}
        for name, by_size in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="also measure ray.util.collective")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine("torch", "ray"), "seconds": {}}
    print(report["machine"])
    print("All-reduce of fp32, microseconds a call")
    if options.ray:
        import ray

        ray.init(include_dashboard=False, log_to_driver=False)
    for size in NUM_RANKS:
        seconds = measure(size, options.rounds, with_ray=options.ray)
        report["seconds"][size] = seconds
        print(f"{size} ranks".ljust(14), *(f"{size_kb:>7} KB" for size_kb in SIZES_KB))
        for name, by_size in seconds.items():
            print(name.ljust(14), *(f"{value * 1e6:10.1f}" for value in by_size.values()))
    of_two = report["seconds"][2]
    for size_kb, (name, bar) in BARS.items():
        value = of_two["torch_gloo"][size_kb] / of_two["shm"][size_kb]
        report[name] = value
        print(f"BAR {name} {value:.1f} {bar} {verdict(value >= bar)}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
