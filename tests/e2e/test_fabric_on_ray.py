"""A real fabric keeps its promises while processes die and freeze and clients leave."""

import asyncio
import os
import signal
import sys
import time

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fabric.client import (
    AsyncClient,
    DeadlineExceeded,
    Generation,
    GroupState,
    ModelState,
    PolicyChange,
    Unavailable,
)
from tests.e2e.live_fabric import (
    MODEL,
    PROMPTS,
    cancel_after,
    collect,
    descendants,
    group_pid,
    listening_addresses,
    wait_until_idle,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

RECOVERY_S = 60.0
NOTICED_S = 8.0
# 127.0.0.1, the same mapped into IPv6, and ::1, as /proc/net/tcp and tcp6 write them.
LOOPBACK = {
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
}


async def test_sixteen_streams_with_cancels_and_deadlines_leave_nothing_behind(
    client: AsyncClient, expected: dict[str, list[int]]
) -> None:
    cancelled = [cancel_after(client, prompt, 5) for prompt in PROMPTS[:8]]
    expiring = [collect(client, prompt, timeout_s=0.02) for prompt in PROMPTS[8:10]]
    whole = [collect(client, prompt) for prompt in PROMPTS[10:]]
    results = await asyncio.gather(*cancelled, *expiring, *whole, return_exceptions=True)
    await wait_until_idle(client)
    for prompt, tokens in zip(PROMPTS[:8], results[:8], strict=True):
        assert isinstance(tokens, list)
        assert tokens == expected[prompt][: len(tokens)]
    assert all(isinstance(error, DeadlineExceeded) for error in results[8:10]), results[8:10]
    for prompt, generation in zip(PROMPTS[10:], results[10:], strict=True):
        assert isinstance(generation, Generation), generation
        assert list(generation.sequences[0].token_ids) == expected[prompt]


async def test_requests_are_explained_and_the_policy_is_switched_while_tokens_flow(
    client: AsyncClient, target: str, expected: dict[str, list[int]]
) -> None:
    command = [sys.executable, "-c", "from fabric.cli import main; main()", "status", "--requests"]
    streams = {
        f"request-{i}": asyncio.create_task(cancel_after(client, p, 390, f"request-{i}"))
        for i, p in enumerate(PROMPTS)
    }
    while not (requests := (await client.explain("g0")).requests):
        await asyncio.sleep(0)
    assert {request.request_id for request in requests} <= streams.keys()
    assert all(request.model == MODEL for request in requests)
    before = "fcfs"
    for policy in ("mlfq", "srw", "edf", "fcfs"):
        assert await client.set_policy(policy) == (PolicyChange("g0", before, policy),)
        before = policy
        await asyncio.sleep(0.1)
    shown = await asyncio.create_subprocess_exec(
        *command, "--target", target, stdout=asyncio.subprocess.PIPE
    )
    table, _ = await shown.communicate()
    assert table.startswith(b"REQUEST")
    assert shown.returncode == 0
    tokens = await asyncio.gather(*streams.values())
    for prompt, found in zip(PROMPTS, tokens, strict=True):
        assert found[:100] == expected[prompt]
    await wait_until_idle(client)
    assert (await client.explain()).requests == ()


@pytest.mark.usefixtures("target")
def test_every_port_of_every_process_is_on_loopback() -> None:
    assert listening_addresses(descendants()) <= LOOPBACK


async def test_health_follows_progress_when_the_group_freezes_and_goes_on(target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=f"model:{MODEL}")
        seen = aiter(health_pb2_grpc.HealthStub(channel).Watch(request))
        assert (await anext(seen)).status == health_pb2.HealthCheckResponse.SERVING
        pid = group_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(NOTICED_S):
                assert (await anext(seen)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(NOTICED_S):
            assert (await anext(seen)).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_killed_group_comes_back_and_serves_without_help(
    client: AsyncClient, expected: dict[str, list[int]]
) -> None:
    before = (await client.status()).groups[0].epoch
    streams = [asyncio.create_task(cancel_after(client, p, 390)) for p in PROMPTS[:4]]
    while (await client.status()).groups[0].load.num_running < 4:
        await asyncio.sleep(0.005)
    os.kill(group_pid(), signal.SIGKILL)
    ended = await asyncio.gather(*streams, return_exceptions=True)
    for error in ended:
        assert isinstance(error, Unavailable)
        assert error.retry_after_s is not None
    assert (await client.status()).groups[0].state is GroupState.DOWN
    assert (await client.models())[0].state is ModelState.LOADING
    deadline = time.monotonic() + RECOVERY_S
    while (await client.models())[0].state is not ModelState.READY:
        assert time.monotonic() < deadline, "the group did not come back"
        await asyncio.sleep(0.1)
    assert (await client.status()).groups[0].epoch > before
    generation = await collect(client, PROMPTS[0])
    assert list(generation.sequences[0].token_ids) == expected[PROMPTS[0]]
    await wait_until_idle(client)
