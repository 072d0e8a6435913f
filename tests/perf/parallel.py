"""Shards against one process: what TP=2 adds to a step, what batches in flight give at PP=2.

Run: python tests/perf/parallel.py [--layers 22] [--batch 8] [--rounds 5] [--smoke] [--json OUT].
The model has random weights in the shape of TinyLlama-1.1B, bf16; prompts are random token ids,
EOS is ignored. Everything runs on two cores: one process with two threads, or two processes with
one each. Rounds are interleaved over the subjects, and decoding alone is timed; figures are
medians over rounds, those of a step medians over its round's steps first. Time in collectives is
mostly waiting for the other rank: on a busy machine, for a processor to run it.

The speedup at PP=2 compares iterations of equal size: ``--batch`` sequences in each that is in
flight; pp2_same_sequences_speedup has twice that in the one iteration. Idle CPU is of the TP=2
gang: its shards, and this process, which drives the other gangs as well.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from machine import describe_machine, verdict
from random_llama import SMOKE, Shape, write_checkpoint

from fabric.core.plan import ParallelConfig
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.executor import ExecutorCosts, Finished
from fabric.engine.gang import GangExecutor
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang
from fabric.kv.transfer import WorkerOrders
from fabric.scheduler.output import SchedulerOutput, StepResult
from fabric.scheduler.settings import SchedulerConfig

SEED = 1
PROMPT = 16
IDLE_S = 3.0
BARS = {
    "tp2_overhead_share": (0.15, False),
    "pp2_in_flight_speedup": (1.5, True),
    "idle_cpu_share": (0.02, False),
}


@dataclass(frozen=True)
class StepCost:
    """Where the time of one iteration went: all of it, in the sampling rank, in its groups."""

    round_trip_s: float
    execute_s: float
    collective_s: float


class Driver:
    """A gang's executor that notes what each iteration costs, if one at a time is in flight."""

    def __init__(self, gang: GangExecutor, num_batches: int) -> None:
        self._gang = gang
        self.num_batches = num_batches
        self.runs_ahead = False
        self.models, self.memory = gang.models, gang.memory
        self.failure = None
        self.steps: list[StepCost] = []
        self._submitted_s = 0.0

    @property
    def costs(self) -> ExecutorCosts:
        return self._gang.costs

    def submit(self, output: SchedulerOutput) -> None:
        self._submitted_s = time.perf_counter()
        self._gang.submit(output)

    def collect(self) -> StepResult:
        before = self._gang.costs
        result = self._gang.collect()
        round_trip_s, costs = time.perf_counter() - self._submitted_s, self._gang.costs
        self.steps.append(
            StepCost(
                round_trip_s,
                costs.execute_s - before.execute_s,
                costs.collective_s - before.collective_s,
            )
        )
        return result

    def move(self, orders: WorkerOrders) -> None:
        self._gang.move(orders)

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        return self._gang.take_finished(timeout_s)

    def close(self) -> None:
        self._gang.close()


@dataclass(frozen=True)
class Subject:
    """An engine, and how many sequences it decodes together."""

    built: BuiltEngine
    num_sequences: int
    driver: Driver | None = None


def decode(subject: Subject, vocab_size: int, num_tokens: int, seed: int) -> dict[str, float]:
    """Figures of the steps in which every sequence decodes."""
    rng, engine = random.Random(seed), subject.built.engine
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    waiting = {f"r{i}" for i in range(subject.num_sequences)}
    for name in sorted(waiting):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(PROMPT))
        engine.add(GenerationRequest(name, "model", prompt, sampling))
    while waiting:
        waiting -= {output.request_id for output in engine.step() if output.deltas}
    if subject.driver:
        subject.driver.steps.clear()
    first_token, times_s = engine.report().num_tokens, [time.perf_counter()]
    has_ended, last_token = False, first_token
    while engine.has_work:
        outputs = engine.step()
        has_ended = has_ended or any(output.is_last for output in outputs)
        if not has_ended:
            times_s.append(time.perf_counter())
            last_token = engine.report().num_tokens
    step_s = statistics.median(b - a for a, b in pairwise(times_s))
    figures = {
        "tokens_per_s": (last_token - first_token) / (times_s[-1] - times_s[0]),
        "step_ms": step_s * 1e3,
    }
    if subject.driver and subject.driver.num_batches == 1:
        steps = subject.driver.steps[: len(times_s) - 1]
        control_s = statistics.median(step.round_trip_s - step.execute_s for step in steps)
        collective_s = statistics.median(step.collective_s for step in steps)
        figures["control_us"] = control_s * 1e6
        figures["collectives_us"] = collective_s * 1e6
        figures["overhead_share"] = (control_s + collective_s) / step_s
    return figures


def cpu_s(pids: list[int]) -> float:
    """Processor time of all threads of some processes."""
    stats = [stat for pid in pids for stat in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(stat.read_text().split()[0]) for stat in stats) / 1e9


def idle_share(host: ProcessShardHost) -> float:
    """Cores that a gang and its driver use while nothing is asked of them."""
    shards_s, driver_s = cpu_s(host.pids), time.process_time()
    time.sleep(IDLE_S)
    return (cpu_s(host.pids) - shards_s + time.process_time() - driver_s) / IDLE_S


class Bench:
    """The subjects, which share a checkpoint."""

    def __init__(self, folder: Path, options: argparse.Namespace, stack: ExitStack) -> None:
        self._stack = stack
        batch = options.batch
        worker = WorkerSettings(
            models=(ModelSettings(model="model", source=str(folder), max_model_len=512),),
            cache_dir=folder,
            kv_cache_bytes=256 * 2**20,
            num_threads=1,
        )
        scheduler = SchedulerConfig(max_num_seqs=2 * batch, max_num_batched_tokens=512)
        self._settings = EngineSettings(worker=worker, scheduler=scheduler, prefix_cache=False)
        two_threads = replace(self._settings, worker=replace(worker, num_threads=2))
        self.subjects = {"one_process": Subject(build_engine(two_threads), batch)}
        self.tp_host = self._add_gang("tp2", ParallelConfig(tensor=2), batch, 1)
        self._add_gang("pp2_2_in_flight", ParallelConfig(pipeline=2), 2 * batch, 2)
        self._add_gang("pp2_1_in_flight", ParallelConfig(pipeline=2), batch, 1)
        alternating = self.subjects["pp2_1_in_flight"]
        self.subjects["pp2_1_in_flight_all"] = replace(alternating, num_sequences=2 * batch)

    def _add_gang(
        self, name: str, parallel: ParallelConfig, num_sequences: int, num_batches: int
    ) -> ProcessShardHost:
        cut = replace(self._settings, parallel=parallel)
        host = ProcessShardHost(parallel)
        gang = start_gang(cut, host)
        self._stack.callback(host.stop)
        self._stack.callback(gang.close)
        driver = Driver(gang, num_batches)
        built = build_engine(cut, gang=driver)
        self.subjects[name] = Subject(built, num_sequences, driver)
        return host


def measure(bench: Bench, options: argparse.Namespace, vocab_size: int) -> dict[str, float]:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in bench.subjects}
    for number in range(-1, options.rounds):
        for name, subject in bench.subjects.items():
            figures = decode(subject, vocab_size, options.tokens, SEED + number)
            if number >= 0:
                rounds[name].append(figures)
    medians = {
        f"{name}_{figure}": statistics.median(row[figure] for row in rows)
        for name, rows in rounds.items()
        for figure in rows[0]
    }
    in_flight = medians["pp2_2_in_flight_tokens_per_s"]
    return medians | {
        "pp2_same_sequences_speedup": in_flight / medians["pp2_1_in_flight_all_tokens_per_s"],
        "tp2_overhead_share": medians["tp2_overhead_share"],
        "pp2_in_flight_speedup": in_flight / medians["pp2_1_in_flight_tokens_per_s"],
        "idle_cpu_share": idle_share(bench.tp_host),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--batch", type=int, default=8, help="sequences of an iteration")
    parser.add_argument("--tokens", type=int, default=32, help="of each sequence and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a tiny model: figures mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shape = SMOKE if options.smoke else Shape(num_layers=options.layers)
    setting = {
        **describe_machine("torch"),
        **{name: str(value) for name, value in vars(options).items()},
        **asdict(shape),
        "seed": SEED,
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        setting["num_parameters"] = write_checkpoint(folder, shape, SEED)
        figures = measure(Bench(folder, options, stack), options, shape.vocab_size)
    for name, value in (setting | figures).items():
        print(f"{name:44} {value:.3f}" if isinstance(value, float) else f"{name:44} {value}")
    for name, (bar, is_floor) in BARS.items():
        value = figures[name]
        is_met = value >= bar if is_floor else value <= bar
        print(f"BAR {name} {value:.3f} {bar} {verdict(is_met)}")
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
