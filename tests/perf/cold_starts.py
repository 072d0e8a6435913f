"""How long the first token takes when a model's weights are on disk, in host memory, or loaded.

Weights on disk are read from it: the checkpoint is dropped from the system's page cache, as far as
the system does so when asked. Prompts differ, and nothing is cached between requests.
"""

import os
import random
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fabric.core.clock import MonotonicClock
from fabric.core.errors import SourceError
from fabric.core.request import GenerationRequest, RequestOutput
from fabric.core.sampling import SamplingParams
from fabric.core.weights import WeightState
from fabric.engine.build import build_engine
from fabric.engine.engine_loop import EngineLoop
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.models.progress import NoProgress
from fabric.models.sources import default_cache_dir, resolve_source
from fabric.scheduler.settings import ResidencyConfig, SchedulerConfig

NUM_ROUNDS = 5
PROMPT = 32
HOST_BYTES = 4 * 2**30
STATES = (WeightState.COLD, WeightState.HOST, WeightState.RESIDENT)
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Subject:
    """A model that can be asked, and where its weights are on disk."""

    loop: EngineLoop
    files: tuple[Path, ...]
    vocab_size: int
    answered: threading.Event


def measure_cold_starts(source: str, fallback: Path) -> dict[str, float]:
    """Medians of the seconds to the first token, by where the weights are at first.

    Args:
        source: The model; it is fetched if it isn't cached.
        fallback: A checkpoint to take if it can't be fetched.
    """
    try:
        path = resolve_source(source, default_cache_dir(), NoProgress()).path
    except SourceError as error:
        print(f"cold starts of {fallback.name} instead of {source}: {error}")
        path, source = fallback, str(fallback)
    print(f"cold starts of {source}, {NUM_ROUNDS} rounds, prompts of {PROMPT} tokens")
    subject = open_subject(source, weight_files(path))
    try:
        ask(subject, 0)
        rounds = [
            {state: first_token_s(subject, state, number) for state in STATES}
            for number in range(1, NUM_ROUNDS + 1)
        ]
    finally:
        subject.loop.stop()
    return {
        f"ttft_{state}_s": statistics.median(times_s[state] for times_s in rounds)
        for state in STATES
    }


def open_subject(source: str, files: tuple[Path, ...]) -> Subject:
    """An engine with one model, on a loop of its own."""
    clock, answered = MonotonicClock(), threading.Event()
    settings = EngineSettings(
        worker=WorkerSettings(
            models=(ModelSettings(model="model", source=source),),
            cache_dir=default_cache_dir(),
            num_threads=2,
            host_weight_bytes=HOST_BYTES,
        ),
        scheduler=SchedulerConfig(residency=ResidencyConfig(idle_s=None, host_bytes=HOST_BYTES)),
        prefix_cache=False,
    )
    built = build_engine(settings, clock=clock)
    loop = EngineLoop(built.engine, tuple(model.served for model in built.models), clock)

    def publish(outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.error is not None:
                raise output.error
            if output.deltas:
                answered.set()

    loop.start(publish)
    return Subject(loop, files, built.models[0].served.card.vocab_size, answered)


def first_token_s(subject: Subject, state: WeightState, seed: int) -> float:
    """Bring the weights to where they are to be, and ask."""
    subject.loop.set_residence("model", state, None).result()
    wait_until(subject, state)
    if state is WeightState.COLD:
        for path in subject.files:
            drop_from_cache(path)
    return ask(subject, seed)


def ask(subject: Subject, seed: int) -> float:
    """Seconds to the first token of one request."""
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(3, subject.vocab_size) for _ in range(PROMPT))
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    subject.answered.clear()
    start_s = time.perf_counter()
    subject.loop.submit(GenerationRequest(f"r{seed} {start_s}", "model", prompt, sampling))
    if not subject.answered.wait(PATIENCE_S):
        raise TimeoutError("no first token")
    return time.perf_counter() - start_s


def wait_until(subject: Subject, state: WeightState) -> None:
    """Wait until the weights are there."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        load = subject.loop.set_residence("model", None, None).result()
        if load.state is state:
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the weights are {load.state}, not {state}")
        time.sleep(0.01)


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files of a checkpoint."""
    if path.is_file():
        return (path,)
    return tuple(file for file in sorted(path.iterdir()) if file.is_file())


def drop_from_cache(path: Path) -> None:
    """Ask the system to forget a file's pages."""
    with suppress(OSError), path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
