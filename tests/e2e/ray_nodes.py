"""A Ray cluster of several nodes on this machine, in a process of its own.

Ray reads its settings when it is imported, and this one has others than the test's process.
"""

import os
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Self

from tests.e2e.live_fabric import descendants

# Prints the address, then a raylet's process id for each number of devices that it reads.
SCRIPT = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
print(cluster.address, flush=True)
for line in sys.stdin:
    added = cluster.add_node(resources={"device": int(line)}, **node)
    print(added.all_processes["raylet"][0].process.pid, flush=True)
cluster.shutdown()
"""


@dataclass
class RayNodes:
    """A head without devices, and the nodes that were added; ends with its context."""

    environment: dict[str, str] = field(
        default_factory=lambda: {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
    )
    raylets: list[int] = field(default_factory=list)
    address: str = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        self.address = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def add(self, num_devices: int) -> None:
        """Start a node, and wait until the others know it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_devices}\n")
        self._process.stdin.flush()
        self.raylets.append(int(self._read()))

    def kill(self, raylet: int) -> None:
        """End a node as a loss of power does: its raylet and all that it started."""
        for pid in (raylet, *descendants(raylet)):
            os.kill(pid, signal.SIGKILL)
        self.raylets.remove(raylet)

    def _read(self) -> str:
        assert self._process.stdout is not None
        # Ray logs to the same stream.
        while line := self._process.stdout.readline():
            if len(line.split()) == 1:
                return line.strip()
        raise AssertionError("the cluster did not start")
