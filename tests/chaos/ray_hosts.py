"""Ray nodes on hosts of their own, and where a gang's processes are on them."""

import json
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.hosts import Host, Network
from tests.e2e.live_fabric import descendants

ROOT = Path(__file__).resolve().parents[2]
RAY_PORT = 6379
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
LIMITS = ["--object-store-memory", "100000000", "--block"]
# As in deploy/: by default Ray counts a node as dead after some fourteen seconds.
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Hosts:
    """A Ray node on each of four hosts; the first is the head."""

    def __init__(self, network: Network, folder: Path, num_devices: int) -> None:
        self._folder = folder
        self._num_devices = num_devices
        # Of a length that leaves room for the names of sockets.
        self._shared = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            **HEALTH_CHECKS,
        }
        self.head, *self.workers = (
            Host(network, number, self._shared, folder / f"host{number}") for number in range(1, 5)
        )

    def start(self, host: Host) -> None:
        """Start a Ray node on a host."""
        command = [*RAY, "start", "--node-ip-address", host.address, *LIMITS]
        if host is self.head:
            command += ["--head", "--port", str(RAY_PORT), "--temp-dir", str(self._shared)]
            command += ["--include-dashboard", "false", "--num-cpus", "0"]
        else:
            command += ["--address", f"{self.head.address}:{RAY_PORT}", "--num-cpus", "2"]
            command += ["--resources", json.dumps({"device": self._num_devices})]
        host.start(command, self.environment, self._folder / f"{host.address}.log")

    def stop(self) -> None:
        """End all hosts."""
        for host in (self.head, *self.workers):
            host.power_off()
        shutil.rmtree(self._shared)

    def shards(self) -> dict[int, Host]:
        """Process ids of workers, and where they are."""
        return {pid: host for host in self.workers for pid in find(host, b"ShardActor")}

    def driver(self) -> Host:
        """Where the gang's driver is."""
        (host,) = (host for host in self.workers if find(host, b"group-gang"))
        return host


def find(host: Host, name: bytes) -> list[int]:
    """Process ids of actors on a host; none on one that is off."""
    if not host.is_on:
        return []
    return [pid for pid in sorted(descendants(host.first_pid)) if name in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        # It has ended meanwhile.
        return b""
