"""What the router and its link cost: against a bare grpc.aio server, in the same run.

Run: python tests/perf/router.py [--rounds 5] [--json OUT]. Three server processes and this
client share the machine; rounds of the two paths alternate; figures are medians over rounds. A
token has arrived when this client has read it.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from machine import describe_machine, verdict
from router_peers import MODEL

from fabric.rpc.v1 import inference_pb2 as pb
from fabric.rpc.v1 import inference_pb2_grpc

PEERS = Path(__file__).with_name("router_peers.py")
ROOT = PEERS.parents[2]
PROMPT = tuple(range(100, 132))
NUM_STREAMS = 32
# 32,000 tokens/s offered: a source that doesn't run ahead, so that little is merged.
PACED_STEP_US = 1_000
MAX_TTFT_ADDED_MS = 2.0
MIN_TOKENS_PER_S = 25_000


@dataclass(frozen=True)
class Streams:
    """One round of concurrent streams."""

    tokens_per_s: float
    tokens_per_message: float
    tpot_ms: float


@contextmanager
def peer(role: str, *arguments: str) -> Iterator[int]:
    """A server process; gives its port."""
    command = [sys.executable, str(PEERS), role, *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(timeout=10)


def ask(num_tokens: int, step_us: int = 0) -> pb.GenerateStreamRequest:
    spec = pb.GenerationSpec(
        model=MODEL,
        token_ids=pb.TokenIds(ids=PROMPT),
        sampling=pb.SamplingOptions(seed=1),
        stopping=pb.StoppingOptions(max_tokens=num_tokens, ignore_eos=True),
        scheduling=pb.SchedulingOptions(priority=step_us),
    )
    return pb.GenerateStreamRequest(spec=spec)


async def ttft_ms(stub: Any) -> float:
    """From the call until its first token has been read."""
    start_s = time.perf_counter()
    found = 0.0
    async for response in stub.GenerateStream(ask(2)):
        if not found and response.WhichOneof("event") == "delta":
            found = (time.perf_counter() - start_s) * 1e3
    return found


async def stream_tokens(stub: Any, num_tokens: int, step_us: int) -> tuple[int, float]:
    """Messages with tokens, and seconds from the first to the last of them."""
    num_messages = num_read = 0
    first_s = last_s = 0.0
    async for response in stub.GenerateStream(ask(num_tokens, step_us)):
        if response.WhichOneof("event") == "delta":
            last_s = time.perf_counter()
            first_s = first_s or last_s
            num_messages += 1
            num_read += len(response.delta.token_ids)
    assert num_read == num_tokens, f"{num_read} tokens of {num_tokens} arrived"
    return num_messages, last_s - first_s


async def streams(stub: Any, num_tokens: int, step_us: int = 0) -> Streams:
    """Streams at once; all of their tokens over the time until the last has been read."""
    start_s = time.perf_counter()
    results = await asyncio.gather(
        *(stream_tokens(stub, num_tokens, step_us) for _ in range(NUM_STREAMS))
    )
    elapsed_s = time.perf_counter() - start_s
    total = NUM_STREAMS * num_tokens
    tpot_s = statistics.median(seconds / (num_tokens - 1) for _, seconds in results)
    num_messages = sum(messages for messages, _ in results)
    return Streams(total / elapsed_s, total / num_messages, tpot_s * 1e3)


async def wait_ready(stub: Any) -> None:
    while True:
        try:
            await ttft_ms(stub)
            return
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.05)


async def measure(ports: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """Rounds over both paths; medians over the rounds."""
    rows: dict[str, list[float]] = {}
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports['bare']}") as bare,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports['router']}") as router,
    ):
        stubs = {
            "bare": inference_pb2_grpc.InferenceServiceStub(bare),
            "router": inference_pb2_grpc.InferenceServiceStub(router),
        }
        for stub in stubs.values():
            await wait_ready(stub)
        # The first round warms up, and is not counted.
        for number in range(options.rounds + 1):
            found = await measure_round(stubs, options)
            for name, value in found.items() if number else ():
                rows.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in rows.items()}


async def measure_round(stubs: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    found: dict[str, float] = {}
    ttfts: dict[str, list[float]] = {name: [] for name in stubs}
    for _ in range(options.requests):
        for name, stub in stubs.items():
            ttfts[name].append(await ttft_ms(stub))
    for name in stubs:
        found[f"{name}_ttft_ms"] = statistics.median(ttfts[name])
    found["router_ttft_added_ms"] = found["router_ttft_ms"] - found["bare_ttft_ms"]
    for name, stub in stubs.items():
        found |= named(name, await streams(stub, options.tokens))
    paced = await streams(stubs["router"], options.tokens, PACED_STEP_US)
    return found | named("router_paced", paced)


def named(prefix: str, row: Streams) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in asdict(row).items()}


def report(figures: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    setting = {
        **describe_machine("grpcio", "protobuf", "msgpack"),
        "rounds": options.rounds,
        "requests_a_round": options.requests,
        "streams": NUM_STREAMS,
        "tokens_a_stream": options.tokens,
        "prompt_tokens": len(PROMPT),
        "paced_step_us": PACED_STEP_US,
        "seed": 1,
    }
    for name, value in (setting | figures).items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value}")
    added, rate = figures["router_ttft_added_ms"], figures["router_tokens_per_s"]
    is_quick, is_fast = added <= MAX_TTFT_ADDED_MS, rate >= MIN_TOKENS_PER_S
    print(f"BAR router_ttft_added_ms {added:.3f} {MAX_TTFT_ADDED_MS} {verdict(is_quick)}")
    print(f"BAR router_tokens_per_s {rate:.0f} {MIN_TOKENS_PER_S} {verdict(is_fast)}")
    return {"setting": setting, "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100, help="for TTFT, a round and path")
    parser.add_argument("--tokens", type=int, default=1024, help="a stream")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        peer("bare") as bare,
        peer("source") as source,
        peer("router", "--source-port", str(source)) as router,
    ):
        figures = asyncio.run(measure({"bare": bare, "router": router}, options))
    result = report(figures, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
