"""A real model's engine computes, iteration by iteration, what the simulator says."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fabric.config import FabricConfig
from fabric.core.clock import VirtualClock
from fabric.core.request import GenerationRequest, LoadReport
from fabric.core.sampling import SamplingParams
from fabric.engine.build import build_engine
from fabric.engine.engine import Engine
from fabric.scheduler.output import SchedulerOutput
from fabric.scheduler.scheduler import Scheduler
from placement.simulator.iteration_level import RouterModel, simulate_in_detail
from placement.workload.trace import Trace
from tests.fidelity.twins import config_of, requests_of, twin_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# A model, and for each sequence: tokens that have KV, that get it now, and are sampled.
Iteration = tuple[int, tuple[tuple[int, int, int], ...]]


def described(output: SchedulerOutput) -> Iteration:
    parts = (
        (item.num_computed_tokens, item.num_new_tokens, item.num_samples)
        for item in output.scheduled
    )
    return output.model, tuple(parts)


class Watched:
    """An engine's scheduler that notes its iterations."""

    def __init__(self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.iterations: list[Iteration] = []
        self._schedule = scheduler.schedule
        monkeypatch.setattr(scheduler, "schedule", self.schedule)

    def schedule(self, now: float) -> SchedulerOutput:
        output = self._schedule(now)
        if output.scheduled:
            self.iterations.append(described(output))
        return output


def serve_all(engine: Engine, trace: Trace) -> None:
    """All requests come at once, and are served to their ends."""
    for number in range(len(trace)):
        prompt = [3 + (7 * number + place) % 500 for place in range(trace.prompt_tokens[number])]
        sampling = SamplingParams(max_tokens=int(trace.output_tokens[number]), ignore_eos=True)
        name = trace.names[trace.models[number]]
        engine.add(GenerationRequest(str(number), name, tuple(prompt), sampling))
    while engine.has_work:
        for output in engine.step():
            assert output.error is None


def computed(
    config: FabricConfig, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Iteration], LoadReport]:
    """What the real engine computes, and its report afterwards."""
    # Its time stands still: what follows from times is not to be held against them.
    built = build_engine(config.engine_settings(config.groups[0]), clock=VirtualClock())
    watched = Watched(built.scheduler, monkeypatch)
    try:
        serve_all(built.engine, trace)
        return watched.iterations, built.engine.report()
    finally:
        built.engine.close()


@pytest.mark.parametrize(
    ("models", "limits"),
    [
        (["a"], {"kv_cache": "4MB"}),
        (["a"], {"kv_cache": "4MB", "max_num_batched_tokens": 24}),
        (["a"], {"kv_cache": "700kB"}),
        (["a", "b", "c"], {"kv_cache": "4MB"}),
        (["a", "b"], {"kv_cache": "700kB", "async_scheduling": True}),
    ],
    ids=["one model", "prompts in chunks", "blocks run out", "three models", "run ahead"],
)
def test_simulator_predicts_every_iteration_of_a_backlog(
    models: Sequence[str],
    limits: dict[str, object],
    stories_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(stories_path, models, tmp_path, **limits)
    trace = requests_of(models, 40, gap_s=0.0)
    wanted, report = computed(config, trace, monkeypatch)
    found: list[Iteration] = []
    detail = simulate_in_detail(
        [twin_of(config, report)],
        trace,
        RouterModel(),
        observe=lambda output, _: found.append(described(output)),
    )
    assert found == wanted
    figures = detail.groups[0]
    assert (figures.num_iterations, figures.num_tokens, figures.num_preemptions) == (
        report.num_steps,
        report.num_tokens,
        report.num_preemptions,
    )
    assert detail.outcome.num_tokens.tolist() == trace.output_tokens.tolist()
