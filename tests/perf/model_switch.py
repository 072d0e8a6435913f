"""What it costs that an engine's iterations alternate between two models.

Both decode batches of the same size. Unmixed, one model's batch runs to its end, then the other's;
mixed, both are there at once, and service is shared out so finely that every iteration is of the
other model. Iterations in which all sequences decode are timed; rounds of both kinds alternate.
"""

import random
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import build_engine, open_local
from fabric.engine.engine import Engine
from fabric.engine.executor import ReadyExecutor
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.scheduler.output import SchedulerOutput
from fabric.scheduler.settings import FairnessConfig, SchedulerConfig

NUM_ROUNDS = 7
BATCH, PROMPT, NUM_TOKENS = 8, 16, 96
NO_LAG_S = 1e-9


class WatchedExecutor:
    """An executor that notes whose iterations it runs."""

    def __init__(self, executor: ReadyExecutor) -> None:
        self._executor = executor
        self.order: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._executor, name)

    def submit(self, output: SchedulerOutput) -> None:
        self.order.append(output.model)
        self._executor.submit(output)


def measure_switches(folder: Path, names: Sequence[str], vocab_size: int) -> dict[str, float]:
    """Seconds of an iteration, unmixed and mixed, and the first by the second.

    Args:
        folder: Has a checkpoint for each of the names.
        names: Two models.
        vocab_size: Of both.
    """
    models = tuple(ModelSettings(model=name, source=str(folder / name)) for name in names)
    settings = EngineSettings(
        worker=WorkerSettings(models=models, cache_dir=folder, num_threads=2),
        scheduler=SchedulerConfig(max_num_seqs=2 * BATCH, fairness=FairnessConfig(lag_s=NO_LAG_S)),
        prefix_cache=False,
    )
    executor = WatchedExecutor(open_local(settings.worker))
    engine = build_engine(settings, gang=executor).engine  # type: ignore[arg-type]
    unmixed: list[float] = []
    mixed: list[float] = []
    for number in range(-1, NUM_ROUNDS):
        each_s = [decode_s(engine, [name], vocab_size, number) for name in names]
        executor.order.clear()
        both_s = decode_s(engine, names, vocab_size, number)
        if number >= 0:
            unmixed.append(statistics.fmean(each_s))
            mixed.append(both_s)
    changes = [before != after for before, after in pairwise(executor.order)]
    engine.close()
    ratios = [one / two for one, two in zip(unmixed, mixed, strict=True)]
    return {
        "model_switch_unmixed_ms": statistics.median(unmixed) * 1e3,
        "model_switch_mixed_ms": statistics.median(mixed) * 1e3,
        "model_switch_alternations": sum(changes) / len(changes),
        "model_switch": statistics.median(ratios),
    }


def decode_s(engine: Engine, names: Sequence[str], vocab_size: int, seed: int) -> float:
    """Mean seconds of the iterations in which each model's whole batch decodes."""
    rng = random.Random(seed)
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    waiting = {f"{name} {i}" for name in names for i in range(BATCH)}
    for request_id in sorted(waiting):
        prompt = tuple(rng.randrange(3, vocab_size) for _ in range(PROMPT))
        engine.add(GenerationRequest(request_id, request_id.split()[0], prompt, sampling))
    while waiting:
        waiting -= {output.request_id for output in engine.step() if output.deltas}
    num_steps, start_s, has_ended = 0, time.perf_counter(), False
    end_s = start_s
    while engine.has_work:
        outputs = engine.step()
        has_ended = has_ended or any(output.is_last for output in outputs)
        if not has_ended:
            num_steps, end_s = num_steps + 1, time.perf_counter()
    return (end_s - start_s) / num_steps
