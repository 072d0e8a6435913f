"""Prometheus can scrape a router, and finds vLLM's names."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fabric.core.errors import ConfigError
from fabric.core.request import LoadReport, ModelLoad
from fabric.core.weights import WeightState
from fabric.rpc.v1 import inference_pb2 as pb
from fabric.telemetry import exposition
from tests.integration.router_world import MODEL, running_world, spec, stream

LOAD = LoadReport(
    num_waiting=3,
    num_swapped=2,
    num_blocks=8,
    num_free_blocks=6,
    num_preemptions=5,
    policy="mlfq",
    swapped_out_bytes=4096,
    stall_s=0.5,
    num_failed_transfers=1,
    num_slabs=64,
    num_free_slabs=32,
    fragmented_bytes=2048,
)


async def ask(world, request):
    """What the metrics port answers to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.router.metrics_port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def scrape(world):
    """Every sample, by name and labels."""
    answer = await ask(world, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Content-Type: text/plain; version=0.0.4" in head
    families = text_string_to_metric_families(body.decode())
    samples = [sample for family in families for sample in family.samples]
    return {(s.name, frozenset(s.labels.items())): s.value for s in samples}


def key(name, **labels):
    return name, frozenset(({"model_name": MODEL, "group": "left"} | labels).items())


async def test_what_groups_report_is_shown_under_vllms_names():
    async with running_world(metrics_port=0) as world:
        world.groups[0].engine.load = LOAD
        while (await world.status()).groups[0].num_swapped != 2:
            await asyncio.sleep(0)
        found = await scrape(world)
        assert found[key("vllm:num_requests_running")] == 0
        assert found[key("vllm:num_requests_waiting")] == 3
        assert found[key("vllm:num_requests_swapped")] == 2
        assert found[key("vllm:kv_cache_usage_perc")] == 0.25
        assert found[key("vllm:num_preemptions_total")] == 5
        assert found[key("fabric_swapped_out_bytes_total")] == 4096
        assert found[key("fabric_swap_stall_seconds_total")] == 0.5
        assert found[key("fabric_failed_transfers_total")] == 1
        assert found[key("fabric_policy", policy="mlfq")] == 1
        assert found[key("fabric_slabs")] == 64
        assert found[key("fabric_slabs_free")] == 32
        assert found[key("fabric_fragmented_bytes")] == 2048
        assert found["fabric_group_ready", frozenset({("group", "left")})] == 1


async def test_where_each_models_weights_are_is_shown():
    async with running_world(metrics_port=0) as world:
        world.groups[0].engine.weights = ModelLoad(
            MODEL, WeightState.LOADING, True, 2, 1, 1234, 12, 3, 4096, 5, 0.125
        )
        loading = key("fabric_model_state", state="loading")
        while (found := await scrape(world))[loading] != 1:
            await asyncio.sleep(0)
        states = [found[key("fabric_model_state", state=state)] for state in WeightState]
        assert sum(states) == 1
        assert found[key("fabric_model_pinned")] == 1
        assert found[key("fabric_model_requests_running")] == 2
        assert found[key("fabric_model_requests_waiting")] == 1
        assert found[key("fabric_model_queued_tokens")] == 1234
        assert found[key("fabric_model_kv_slabs")] == 12
        assert found[key("fabric_model_idle_slabs")] == 3
        assert found[key("fabric_model_weight_bytes")] == 4096
        assert found[key("fabric_model_loads_total")] == 5
        assert found[key("fabric_model_load_seconds")] == 0.125


async def test_requests_are_counted_and_timed_without_a_label_that_clients_choose():
    async with running_world(metrics_port=0) as world:
        scheduling = pb.SchedulingOptions(tenant="acme")
        for _ in range(2):
            message = spec(max_tokens=5, scheduling=scheduling)
            await world.stub.Generate(pb.GenerateRequest(spec=message))
        found = await scrape(world)
        assert found[key("vllm:request_success_total", finished_reason="length")] == 2
        assert found[key("vllm:prompt_tokens_total")] == 12
        assert found[key("vllm:generation_tokens_total")] == 10
        assert found[key("vllm:time_to_first_token_seconds_count")] == 2
        assert found[key("vllm:e2e_request_latency_seconds_bucket", le="+Inf")] == 2
        assert found[key("vllm:request_generation_tokens_sum")] == 10
        assert found[key("vllm:request_generation_tokens_bucket", le="2.0")] == 0
        assert found[key("vllm:request_generation_tokens_bucket", le="5.0")] == 2
        gaps = found[key("vllm:inter_token_latency_seconds_count")]
        assert gaps == found[key("vllm:time_per_output_token_seconds_count")] <= 8
        assert found["fabric_requests_ended_total", frozenset({("outcome", "length")})] == 2
        names = {name for _, labels in found for name, _ in labels}
        ours = {"model_name", "group", "le", "finished_reason", "outcome", "policy", "state"}
        assert names <= ours


async def test_a_request_in_flight_shows_and_its_cancelling_too():
    async with running_world(metrics_port=0) as world:
        world.groups[0].engine.going.clear()
        call = stream(world, spec())
        await anext(aiter(call))
        assert (await scrape(world))["fabric_requests_in_flight", frozenset()] == 1
        call.cancel()
        outcome = "fabric_requests_ended_total", frozenset({("outcome", "cancelled")})
        while (await scrape(world)).get(outcome) != 1:
            await asyncio.sleep(0)


async def test_the_counters_of_a_lost_group_do_not_fall_to_nothing():
    async with running_world(metrics_port=0) as world:
        await world.groups.pop().stop()
        await world.wait_down()
        found = await scrape(world)
        assert found["fabric_group_ready", frozenset({("group", "left")})] == 0
        lost = {"fabric_steps_total", "fabric_model_loads_total", "fabric_model_state"}
        assert not [name for name, _ in found if name in lost]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?name=x HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\r\n\r\n", b"405"),
    ],
)
async def test_other_requests_get_a_status(request_, status):
    async with running_world(num_groups=0, metrics_port=0) as world:
        assert (await ask(world, request_)).split()[1] == status


async def test_what_is_no_request_is_dropped(monkeypatch):
    monkeypatch.setattr(exposition, "HEAD_TIMEOUT_S", 0.05)
    async with running_world(num_groups=0, metrics_port=0) as world:
        for junk in (b"GET /metrics", b"x" * 2**20):
            try:
                assert await ask(world, junk) == b""
            except ConnectionError:
                continue
        assert await scrape(world)


async def test_without_a_port_nothing_listens():
    async with running_world(num_groups=0) as world:
        assert world.router.metrics_port is None


async def test_a_taken_port_is_named():
    async with running_world(num_groups=0, metrics_port=0) as world:
        port = world.router.metrics_port
        with pytest.raises(ConfigError, match=f"metrics can't be served on 127.0.0.1:{port}"):
            async with running_world(num_groups=0, metrics_port=port):
                pass
