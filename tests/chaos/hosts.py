"""Hosts with addresses, processes and shared memory of their own, as namespaces of this machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

NETWORK = "10.177.0"


class Network:
    """A bridge that hosts plug into; this process has the address .254 on it."""

    def __init__(self) -> None:
        self.name = f"fab{os.getpid() % 100000}"

    def __enter__(self) -> Self:
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", self.name)
        _ip("link", "set", self.name, "up")
        return self

    def __exit__(self, *_: object) -> None:
        _ip("link", "del", self.name)


class Host:
    """Namespaces for network, processes and mounts, with a command as their first process.

    Args:
        network: Where it plugs in.
        number: The last part of its address.
        shared: A folder that is private to the host, but called the same on all.
        private: What lies there on this host.
    """

    def __init__(self, network: Network, number: int, shared: Path, private: Path) -> None:
        self.address = f"{NETWORK}.{number}"
        self._name = f"{network.name}h{number}"
        self._network = network
        self._peer = f"{network.name}p{number}"
        self._mounts = (private, shared)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        """Plug in, and run a command that is killed with everything it started."""
        name, peer = self._name, self._peer
        _ip("netns", "add", name)
        _ip("link", "add", peer, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", peer, "master", self._network.name, "up")
        _ip("-n", name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "lo", "up")
        self.plug()
        private, shared = self._mounts
        shutil.rmtree(private, ignore_errors=True)
        private.mkdir(parents=True)
        script = (
            f"mount --bind {private} {shared} && mount -t tmpfs -o size=2g tmpfs /dev/shm"
            ' && "$@" & wait'
        )
        unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", name, *unshare, "bash", "-c", script, "bash", *command],
            env=environment,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def enter(self, command: Sequence[str]) -> list[str]:
        """A command line that runs another inside the host."""
        return ["nsenter", "-t", str(self.first_pid), "-n", "-p", "-m", *command]

    @property
    def is_on(self) -> bool:
        """Whether it was started, and not switched off."""
        return self._process is not None

    @property
    def first_pid(self) -> int:
        """The host's first process, as this machine numbers it."""
        assert self._process is not None
        pid = self._process.pid
        path = Path(f"/proc/{pid}/task/{pid}/children")
        deadline = time.monotonic() + 5
        while not (children := path.read_text().split()):
            assert time.monotonic() < deadline, f"{self._name} did not start"
            time.sleep(0.01)
        return int(children[0])

    @property
    def shared_memory(self) -> set[str]:
        """Names in the host's /dev/shm."""
        return {entry.name for entry in Path(f"/proc/{self.first_pid}/root/dev/shm").iterdir()}

    def plug(self) -> None:
        """Connect the host."""
        _ip("-n", self._name, "link", "set", "eth0", "up")

    def unplug(self) -> None:
        """Disconnect the host; its processes go on."""
        _ip("-n", self._name, "link", "set", "eth0", "down")

    def power_off(self) -> None:
        """Kill everything on the host at once."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first_pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process = None
        # The namespace outlives its name for as long as its last connections linger.
        _ip("link", "del", self._peer)
        _ip("netns", "del", self._name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
