"""A whole fabric on Ray counts what the simulator counts."""

import asyncio
from pathlib import Path

import pytest
import yaml

from fabric.client import AsyncClient
from fabric.core.request import LoadReport
from placement.simulator.iteration_level import RouterModel, simulate_in_detail
from placement.workload.trace import Trace
from tests.e2e.live_fabric import serving
from tests.fidelity.twins import config_of, requests_of, twin_of

pytestmark = pytest.mark.ray

MODELS = ("a", "b", "c")


async def ask_one_after_the_other(target: str, trace: Trace) -> LoadReport:
    """Send the requests; the group's report once it counts all that was computed."""
    num_tokens = int((trace.prompt_tokens + trace.output_tokens - 1).sum())
    async with AsyncClient(target) as client:
        for number in range(len(trace)):
            answer = await client.generate(
                trace.names[trace.models[number]],
                [3 + (7 * number + place) % 500 for place in range(trace.prompt_tokens[number])],
                max_tokens=int(trace.output_tokens[number]),
                ignore_eos=True,
            )
            assert answer.usage.completion_tokens == trace.output_tokens[number]
        # Reports come a few times a second.
        async with asyncio.timeout(10.0):
            while (load := (await client.status()).groups[0].load).num_tokens < num_tokens:
                await asyncio.sleep(0.05)
    return load


def test_simulator_counts_the_iterations_and_tokens_of_a_fabric(
    stories_path: Path, tmp_path: Path
) -> None:
    limits = {"kv_cache": "4MB", "max_num_batched_tokens": 32}
    config = config_of(stories_path, MODELS, tmp_path, **limits)
    trace = requests_of(MODELS, 12, gap_s=10.0)
    path = tmp_path / "fabric.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    # In a process of its own: other tests' Ray may be in this one.
    with serving(path) as (target, _):
        load = asyncio.run(ask_one_after_the_other(target, trace))
    figures = simulate_in_detail([twin_of(config, load)], trace, RouterModel()).groups[0]
    assert (figures.num_iterations, figures.num_tokens) == (load.num_steps, load.num_tokens)
    assert figures.num_slabs == load.num_slabs
