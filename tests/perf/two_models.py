"""AlpaServe's example, live: two equal models, a device each, or both in a pipeline over both.

Run: python tests/perf/two_models.py [--quick] [--seeds 1 2 3] [--requests 400] [--json OUT]. A
device is a core: a worker of one thread that is pinned to it. (a) has a process with an engine for
each model, (b) one engine that drives a gang of two stages, in which both models are resident; its
driver is pinned to neither core. Requests are prompts of equal length that share nothing, each
with one output token, so each is one forward pass, as the paper's models take; iterations hold one
request each, and the first to come is the first served, whatever its model. Arrivals are open
loop, 1.185 requests in the time of a forward pass altogether, as in the paper's example: each
device is busy for 0.59 of the time, or 0.95 and 0.24 when the models' rates are split 80 to 20.
Arrivals are the same for both, whose runs alternate, seed by seed.

What is predicted is computed from the times measured before each run: of a request alone, and from
one to the next while requests wait, both devices at work. ``closed form`` is exact for Poisson
arrivals in the long run, ``simulated`` for just the arrivals that were sent. With the split one
device is busy for 0.95 of the time, and queues of no run are near those of the long run; with Gamma
arrivals there is no closed form: there the simulation predicts.

Source: AlpaServe (Li et al., OSDI 2023), figure 2 and section 3.4.
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from engine_process import Fleet, Place
from goodput import quantile
from machine import describe_machine, verdict
from queueing import Service, simulate_latencies_s, split_latency_s
from random_llama import Shape, write_checkpoint
from shared_load import Load, Model, draw_load, make_requests

from fabric.core.plan import ParallelConfig
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.scheduler.settings import FairnessConfig, SchedulerConfig

SHAPE = Shape(
    num_layers=12,
    hidden_size=768,
    intermediate_size=2048,
    num_heads=12,
    num_kv_heads=4,
    vocab_size=2000,
)
NAMES = ("model-0", "model-1")
SUBJECTS = ("a device each", "shared pipeline")
# 3 requests a second of 0.395 s each.
REQUESTS_IN_A_PASS = 3 * 0.395
NUM_BACKLOG = 24
NUM_ALONE = 11
NUM_WARMUPS = 5
MIN_GAIN = 1.0
MAX_ERROR = 0.25


@dataclass(frozen=True)
class Setting:
    """How requests arrive, how they are split, and what the paper gains in the mean."""

    cv: float
    shares: tuple[float, float]
    paper: float
    has_closed_form: bool


SETTINGS = {
    "poisson": Setting(1.0, (0.5, 0.5), 1.3, True),
    "gamma_cv3": Setting(3.0, (0.5, 0.5), 1.9, False),
    "split_20_80": Setting(1.0, (0.2, 0.8), 6.6, False),
}


@dataclass(frozen=True)
class Figures:
    """Latencies of one subject in one setting, over all seeds, in seconds."""

    mean_s: float
    p99_s: float
    simulated_s: float
    closed_form_s: float | None
    alone_s: float
    interval_s: float


class Bench:
    """Both subjects, which share the cores by turns."""

    def __init__(self, folder: Path, options: argparse.Namespace, stack: ExitStack) -> None:
        self._prompt: int = options.prompt
        self._models = [Model(name, SHAPE.vocab_size) for name in NAMES]
        self.cores = tuple(sorted(os.sched_getaffinity(0))[:2])
        if len(self.cores) < 2:
            raise SystemExit("two cores are needed: one for each device")
        shared = self._settings(folder, NAMES, ParallelConfig(pipeline=2))
        each = (self._settings(folder, [name], ParallelConfig()) for name in NAMES)
        places = [Place(one, (core,)) for one, core in zip(each, self.cores, strict=True)]
        self._fleets = {
            SUBJECTS[0]: Fleet(places, stack),
            SUBJECTS[1]: Fleet([Place(shared, self.cores)], stack),
        }

    def _settings(
        self, folder: Path, names: Sequence[str], parallel: ParallelConfig
    ) -> EngineSettings:
        models = tuple(
            ModelSettings(model=name, source=str(folder / name), max_model_len=self._prompt + 1)
            for name in names
        )
        worker = WorkerSettings(
            models=models, cache_dir=folder, num_threads=1, kv_cache_bytes=128 * 2**20
        )
        scheduler = SchedulerConfig(
            max_num_seqs=self._prompt,
            max_num_batched_tokens=self._prompt,
            max_num_waiting=10**6,
            fairness=FairnessConfig(lag_s=None),
        )
        return EngineSettings(
            worker=worker, scheduler=scheduler, prefix_cache=False, parallel=parallel
        )

    def serve(self, subject: str, load: Load, arrivals_s: list[float], seed: int) -> list[float]:
        """Latencies in the order of the arrivals."""
        requests = make_requests(load, self._models, seed)
        served = self._fleets[subject].serve(requests, arrivals_s)
        return [one.ended_s - one.arrived_s for one in served]

    def service(self, subject: str, seed: int) -> Service:
        """Times of one request alone, and between requests while others wait for every device."""
        alone = self._even_load(NUM_ALONE)
        gap_s = 2.0 * max(self.serve(subject, alone, [0.0] * NUM_ALONE, seed)) / NUM_ALONE
        alone_s = self.serve(subject, alone, [i * gap_s for i in range(NUM_ALONE)], seed)
        backlog = self._even_load(2 * NUM_BACKLOG)
        latencies_s = self.serve(subject, backlog, [0.0] * 2 * NUM_BACKLOG, seed)
        return Service(statistics.median(alone_s[1:]), self._interval_s(subject, latencies_s))

    def _interval_s(self, subject: str, latencies_s: list[float]) -> float:
        """From one end to the next: on one device, whose requests are every second one, or all."""
        num_queues = 2 if subject == SUBJECTS[0] else 1
        queues = [latencies_s[i::num_queues] for i in range(num_queues)]
        return statistics.fmean((max(queue) - min(queue)) / (len(queue) - 1) for queue in queues)

    def _even_load(self, num_requests: int) -> Load:
        models = tuple(i % 2 for i in range(num_requests))
        return Load(models, [(self._prompt, 1)] * num_requests, (0.0,) * num_requests)


def predict_s(subject: str, service: Service, load: Load, arrivals_s: list[float]) -> list[float]:
    """Latencies of just these arrivals, on a device for each model or in one pipeline."""
    if subject == SUBJECTS[1]:
        return simulate_latencies_s(service, arrivals_s)
    queues = [
        [arrival_s for arrival_s, owner in zip(arrivals_s, load.models, strict=True) if owner == i]
        for i in range(len(NAMES))
    ]
    return [one for queue in queues for one in simulate_latencies_s(service, queue)]


def closed_form_s(
    subject: str, service: Service, setting: Setting, rate_per_s: float
) -> float | None:
    """The mean latency in the long run, for Poisson arrivals."""
    if setting.cv != 1.0:
        return None
    rates_per_s = [share * rate_per_s for share in setting.shares]
    return split_latency_s(service, rates_per_s if subject == SUBJECTS[0] else [rate_per_s])


def measure(
    bench: Bench, setting: Setting, rate_per_s: float, options: argparse.Namespace
) -> dict[str, Figures]:
    """Serve each seed's arrivals in turns, each time after measuring what a request takes."""
    measured: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    simulated: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    services: dict[str, list[Service]] = {subject: [] for subject in SUBJECTS}
    for seed in options.seeds:
        lengths = [(options.prompt, 1)] * options.requests
        load = draw_load(setting.shares, setting.cv, options.requests, seed, lengths)
        arrivals_s = load.at(rate_per_s)
        for subject in random.Random(seed).sample(SUBJECTS, len(SUBJECTS)):
            service = bench.service(subject, seed)
            services[subject].append(service)
            measured[subject] += bench.serve(subject, load, arrivals_s, seed)
            simulated[subject] += predict_s(subject, service, load, arrivals_s)
    return {
        subject: Figures(
            statistics.fmean(measured[subject]),
            quantile(measured[subject], 0.99),
            statistics.fmean(simulated[subject]),
            closed_form_s(subject, service, setting, rate_per_s),
            service.alone_s,
            service.interval_s,
        )
        for subject in SUBJECTS
        for service in [middle(services[subject])]
    }


def middle(services: list[Service]) -> Service:
    """The medians of what was measured."""
    return Service(
        statistics.median(service.alone_s for service in services),
        statistics.median(service.interval_s for service in services),
    )


def gains(setting: Setting, figures: dict[str, Figures]) -> dict[str, float]:
    """(a) by (b): above 1, sharing is better."""
    each, shared = (figures[subject] for subject in SUBJECTS)
    found = {
        "mean": each.mean_s / shared.mean_s,
        "p99": each.p99_s / shared.p99_s,
        "simulated": each.simulated_s / shared.simulated_s,
        "paper": setting.paper,
    }
    if each.closed_form_s is not None and shared.closed_form_s is not None:
        # Without end if the devices measured slower than the load allows.
        is_stable = math.isfinite(each.closed_form_s) and math.isfinite(shared.closed_form_s)
        found["closed_form"] = each.closed_form_s / shared.closed_form_s if is_stable else math.nan
    return found


def print_setting(name: str, figures: dict[str, Figures], found: dict[str, float]) -> None:
    for subject, row in figures.items():
        closed = "-" if row.closed_form_s is None else f"{row.closed_form_s * 1e3:.0f} ms"
        print(
            f"{name:12} {subject:16} alone {row.alone_s * 1e3:.1f} ms, "
            f"of a backlog {row.interval_s * 1e3:.1f} ms each"
        )
        print(
            f"{name:12} {subject:16} mean {row.mean_s * 1e3:.0f} ms, P99 {row.p99_s * 1e3:.0f} ms; "
            f"mean simulated {row.simulated_s * 1e3:.0f} ms, closed form {closed}"
        )
    ratios = ", ".join(f"{kind} {value:.2f}" for kind, value in found.items())
    print(f"{name:12} a / b: {ratios}", flush=True)


def print_bars(found: dict[str, dict[str, float]]) -> None:
    """Gains, and gains by predicted gains."""
    for name, ratios in found.items():
        gain = ratios["mean"]
        print(f"BAR two_models_{name} {gain:.2f} {MIN_GAIN} {verdict(gain >= MIN_GAIN)}")
        kind = "closed_form" if SETTINGS[name].has_closed_form else "simulated"
        value = gain / ratios[kind]
        is_met = abs(value - 1.0) <= MAX_ERROR
        target = f"{1 - MAX_ERROR}-{1 + MAX_ERROR}"
        print(f"BAR two_models_{name}_vs_predicted {value:.2f} {target} {verdict(is_met)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the requests")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--requests", type=int, default=400, help="of each run")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.requests = options.seeds[:1], options.requests // 4
    return options


def main() -> None:
    options = parse_options()
    # Ended or interrupted, it leaves no process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = {**describe_machine("torch"), **asdict(SHAPE)}
    machine |= {name: str(value) for name, value in vars(options).items()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for seed, name in enumerate(NAMES):
            (folder / name).mkdir()
            machine["num_parameters"] = write_checkpoint(folder / name, SHAPE, seed)
        bench = Bench(folder, options, stack)
        for name, value in (machine | {"cores": bench.cores}).items():
            print(f"{name:20} {value}")
        one_device = middle([bench.service(SUBJECTS[0], seed) for seed in range(NUM_WARMUPS)])
        rate_per_s = REQUESTS_IN_A_PASS / one_device.interval_s
        print(f"{'rate_per_s':20} {rate_per_s:.2f}", flush=True)
        figures, found = {}, {}
        for name in options.settings:
            setting = SETTINGS[name]
            figures[name] = measure(bench, setting, rate_per_s, options)
            found[name] = gains(setting, figures[name])
            print_setting(name, figures[name], found[name])
    print_bars(found)
    if options.json:
        rows = {
            name: {subject: asdict(row) for subject, row in both.items()}
            for name, both in figures.items()
        }
        result = {"machine": machine, "rate_per_s": rate_per_s}
        options.json.write_text(json.dumps(result | {"rows": rows, "gains": found}, indent=2))


if __name__ == "__main__":
    main()
