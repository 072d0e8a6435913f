"""What tests do to a fabric that really runs: ask it, look at its processes, wait for it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fabric.client import AsyncClient, Generation, SequenceDelta

MODEL = "stories"
PROMPTS = tuple(
    f"{start} {name}"
    for start in ("Once upon a time", "One day", "The dog", "In the park")
    for name in ("Lily", "Tom", "Ben", "Sue")
)


# Two stages of two tensor ranks, on devices that are resources of Ray.
GANG = """
models:
  - {{id: {model}, source: {source}, dtype: float32}}
groups:
  - name: gang
    models: [{model}]
    parallel: {{pipeline: 2, tensor: 2}}
    kv_cache: 4MB
    max_num_seqs: 16
    num_threads: 1
    resources: {{device: 1}}
    num_cpus: 0.5
router: {{port: 0}}
ray: {ray}
cache_dir: {cache}
"""


@contextmanager
def serving_gang(
    folder: Path, source: Path, ray: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """Run `fabric serve` with GANG in a process of its own.

    Args:
        folder: For the configuration and the cache.
        source: The model's folder.
        ray: The configuration's ray section, in YAML.
        environment: The process's; None: this one's.

    Yields:
        The router's address, and the process id.
    """
    config = folder / "gang.yaml"
    config.write_text(GANG.format(model=MODEL, source=source, cache=folder, ray=ray))
    with serving(config, environment) as served:
        yield served


@contextmanager
def serving(
    config: Path, environment: Mapping[str, str] | None = None, plan: Path | None = None
) -> Iterator[tuple[str, int]]:
    """Run `fabric serve` with a configuration file in a process of its own.

    Args:
        config: The file.
        environment: The process's; None: this one's.
        plan: A file of models and groups to serve instead of the configuration's.

    Yields:
        The router's address, and the process id.
    """
    command = [sys.executable, "-c", "from fabric.cli import main; main()", "serve", str(config)]
    command += [] if plan is None else ["--plan", str(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at " in line, line
        yield line.split(" at ")[1].split(";")[0].split()[0], process.pid
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def shard_pids(root: int) -> list[int]:
    """Process ids of the shard actors below a process: `fabric serve`, or a node's raylet."""
    return [pid for pid in descendants(root) if b"ShardActor" in _read(pid, "cmdline")]


async def collect(client: AsyncClient, prompt: str, **options: float) -> Generation:
    """The whole greedy answer of 100 tokens."""
    stream = client.stream(
        MODEL, prompt, max_tokens=100, temperature=0.0, ignore_eos=True, **options
    )  # type: ignore[arg-type]
    return await stream.collect()


async def cancel_after(
    client: AsyncClient, prompt: str, num_tokens: int, request_id: str = ""
) -> list[int]:
    """Take so many tokens of a long answer, then leave it."""
    tokens: list[int] = []
    async with client.stream(
        MODEL, prompt, max_tokens=400, temperature=0.0, ignore_eos=True, request_id=request_id
    ) as stream:
        async for event in stream:
            if isinstance(event, SequenceDelta):
                tokens.extend(event.token_ids)
            if len(tokens) >= num_tokens:
                break
    return tokens


async def wait_until_idle(client: AsyncClient) -> None:
    """Wait until the group holds nothing; fails by the test's time limit if it leaks."""
    while True:
        status = await client.status()
        load = status.groups[0].load
        is_idle = load.num_running == 0 and load.num_waiting == 0
        if is_idle and load.num_free_blocks == load.num_blocks and status.num_inflight == 0:
            return
        await asyncio.sleep(0.05)


def group_pid(root: int | None = None, group: str = "g0") -> int:
    """Process id of a device group's replica, below this process or another one."""
    name = f"group-{group}".encode()
    (pid,) = (pid for pid in descendants(root) if name in _read(pid, "cmdline"))
    return pid


def descendants(root: int | None = None) -> set[int]:
    """Process ids of all that a process (this one) started, directly or not."""
    root = os.getpid() if root is None else root
    found = {root}
    parents = dict(_parents())
    for pid in sorted(parents):
        ancestors, current = [pid], pid
        while current in parents and current not in found:
            current = parents[current]
            ancestors.append(current)
        if current in found:
            found.update(ancestors)
    return found - {root}


def processes_of_session(session: int) -> set[int]:
    """Process ids that live in a session; Ray's processes stay in that of the command."""
    stats = {int(p.name): _read(int(p.name), "stat") for p in Path("/proc").glob("[0-9]*")}
    fields = {pid: stat.rpartition(b")")[2].split() for pid, stat in stats.items()}
    return {pid for pid, rest in fields.items() if rest and int(rest[3]) == session}


def listening_addresses(pids: set[int]) -> set[str]:
    """Hexadecimal addresses, as the kernel writes them, on which the processes accept TCP."""
    sockets = {file for pid in pids for file in _open_files(pid)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            is_listening = fields[3] == "0A"
            if is_listening and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].split(":")[0])
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(int(entry.name), "stat")):
            yield int(entry.name), int(stat.rpartition(b")")[2].split()[1])


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        # It has ended meanwhile.
        return b""


def _open_files(pid: int) -> Iterator[str]:
    # Files are closed, and processes end, while we look.
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(entry)
