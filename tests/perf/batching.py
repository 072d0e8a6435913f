"""What iteration-level scheduling gains over batches of whole requests.

Run: python tests/perf/batching.py [--rounds 5] [--no-engine] [--json OUT]. One engine, paged
memory enough for all, at most B sequences at once; either requests join at every iteration, or a
new batch starts when all of the last one has ended. Source: Orca (Yu et al., OSDI 2022).

``steps`` is the ratio of iterations for an output token, counted without a model while requests
wait; ``expected`` is E[max of B outputs] / E[output] of the same lengths. ``wall`` is the ratio of
seconds for an output token with stories260K, medians over rounds that take turns. Its iterations
take longer the more sequences they hold, and prompts take time, so less than ``expected`` is left.

``early``: what requests of 16 tokens take, one after the other, beside one of 480, by what the same
take alone: in iterations, without a model, and in seconds.
"""

import argparse
import json
import statistics
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

from contenders import CONTENDERS, Memory, answer, make_engine, make_requests, make_scheduler
from lengths import Lengths, draw_lengths
from machine import describe_machine, verdict
from open_loop import serve

from fabric.core.clock import Clock, MonotonicClock, VirtualClock
from fabric.engine.engine import Engine

SEED = 1
POLICIES = ("request_level", "paged")
BATCHES = (4, 8, 16, 32)
NUM_BATCHES = 200
NUM_TIMED_BATCHES = 6
# Lengths are divided so that outputs are about 15 tokens in the mean; ratios hardly change.
COUNTED = {"azure_conv": 16, "azure_code": 2, "heavy_tail": 8, "equal": 4}
TIMED = {"azure_conv": 16, "azure_code": 8, "heavy_tail": 8, "equal": 4}
CONTEXT = 512
SHORT, LONG = (16, 16), (16, 480)
# Beside the long one, whole-request batches let each wait for all of it.
NUM_SHORT = {"paged": 100, "request_level": 5}
MAX_DEVIATION = 0.1


def expected_ratio(lengths: Lengths, batch: int) -> float:
    """E[max of ``batch`` outputs] / E[output], the outputs drawn from those given."""
    outputs = sorted(output for _, output in lengths)
    size = len(outputs)
    shares = [((i + 1) ** batch - i**batch) / size**batch for i in range(size)]
    biggest: float = sum(o * share for o, share in zip(outputs, shares, strict=True))
    return biggest / statistics.fmean(outputs)


def memory_for(max_len: int, batch: int) -> Memory:
    return Memory(batch * (max_len + 16), 16, max_len)


def steps_per_token(policy: str, lengths: Lengths, batch: int) -> float:
    """Iterations for each output token, while requests wait."""
    contender, memory = CONTENDERS[policy], memory_for(8192, batch)
    scheduler = make_scheduler(contender, memory, contender.kv(memory), batch)
    for request in make_requests(lengths):
        scheduler.add(request, 0.0)
    num_tokens, num_left = 0, len(lengths)
    for step in count():
        output = scheduler.schedule(0.0)
        num_left -= len(output.new_sequences)
        if not num_left:
            return step / num_tokens
        result = answer(output)
        scheduler.update_from_output(output, result, 0.0)
        num_tokens += len(result.sampled)
    raise AssertionError


def seconds_per_token(policy: str, lengths: Lengths, batch: int) -> float:
    """Seconds for each output token of the real engine, while requests wait."""
    with closing(engine_for(policy, batch)) as engine:
        for request in make_requests(lengths):
            engine.add(request)
        clock, num_tokens, num_left = MonotonicClock(), 0, len(lengths)
        start_s = clock.now()
        while num_left:
            for delta in (delta for output in engine.step() for delta in output.deltas):
                num_tokens += len(delta.token_ids)
                num_left -= delta.first_token == 0
        return (clock.now() - start_s) / num_tokens


def engine_for(policy: str, batch: int, clock: Clock | None = None) -> Engine:
    contender, memory = CONTENDERS[policy], memory_for(CONTEXT, batch)
    kv = contender.kv(memory)
    return make_engine(make_scheduler(contender, memory, kv, batch), memory, clock=clock)


def short_times_s(policy: str, is_accompanied: bool) -> list[float]:
    """Seconds that each of some short requests takes, one after the other."""
    clock, times_s = MonotonicClock(), list[float]()
    (short,), (long,) = make_requests([SHORT]), make_requests([LONG])
    short = replace(short, request_id="short")
    with closing(engine_for(policy, 2)) as engine:
        while len(times_s) < NUM_SHORT[policy]:
            if is_accompanied and not engine.has_work:
                engine.add(long)
                engine.step()
            start_s = clock.now()
            engine.add(short)
            while not any(o.is_last and o.request_id == "short" for o in engine.step()):
                pass
            times_s.append(clock.now() - start_s)
    return times_s


def short_steps(policy: str, neighbours: Lengths) -> float:
    """Iterations that a short request takes which arrives just after its neighbours."""
    clock = VirtualClock()
    requests = list(make_requests([*neighbours, SHORT]))
    served = serve(engine_for(policy, 2, clock), requests, range(len(requests)), clock)
    name = requests[-1].request_id
    return next(r.ended_s - r.arrived_s for r in served if r.request_id == name)


def count_ratios() -> dict[str, dict[int, dict[str, float]]]:
    """Ratios of iterations by trace and batch."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for name, scale in COUNTED.items():
        for batch in BATCHES:
            lengths = draw_lengths(name, NUM_BATCHES * batch, SEED, scale, 8192 // scale)
            whole, iteration = (steps_per_token(policy, lengths, batch) for policy in POLICIES)
            row = {"expected": expected_ratio(lengths, batch), "steps": whole / iteration}
            rows.setdefault(name, {})[batch] = row
    return rows


def time_ratios(num_rounds: int) -> dict[str, dict[int, dict[str, float]]]:
    """Ratios of seconds by trace and batch, medians over rounds of other lengths."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for name, scale in TIMED.items():
        for batch in BATCHES:
            walls, expected = list[float](), list[float]()
            for number in range(num_rounds):
                size = NUM_TIMED_BATCHES * batch
                lengths = draw_lengths(name, size, SEED + number, scale, CONTEXT)
                order = POLICIES[:: 1 if number % 2 else -1]
                seconds = {policy: seconds_per_token(policy, lengths, batch) for policy in order}
                walls.append(seconds["request_level"] / seconds["paged"])
                expected.append(expected_ratio(lengths, batch))
            rows.setdefault(name, {})[batch] = {
                "wall_expected": statistics.median(expected),
                "wall": statistics.median(walls),
                "wall_min": min(walls),
                "wall_max": max(walls),
            }
    return rows


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def time_early_return(num_rounds: int) -> dict[str, float]:
    """How much longer short requests take beside a long one: medians over rounds."""
    ratios: dict[str, list[float]] = {}
    for _ in range(num_rounds):
        alone = short_times_s("paged", False)
        for policy in POLICIES:
            beside = short_times_s(policy, True)
            for figure, share in (("p50", 0.5), ("p99", 0.99)):
                ratio = percentile(beside, share) / percentile(alone, share)
                ratios.setdefault(f"early_{policy}_{figure}", []).append(ratio)
    return {name: statistics.median(values) for name, values in ratios.items()}


def print_bars(rows: dict[str, dict[int, dict[str, float]]]) -> None:
    """Print how much of the steps saved is time saved, then the bars, which count steps."""
    for name, by_batch in rows.items():
        for batch, row in by_batch.items():
            if "wall" in row:
                share = row["wall"] / row["wall_expected"]
                print(f"time saved by steps saved: {name} B={batch} {share:.2f}")
    for name, by_batch in rows.items():
        for batch, row in by_batch.items():
            share = row["steps"] / row["expected"]
            is_met = abs(share - 1) <= MAX_DEVIATION
            print(f"BAR steps_{name}_{batch} {share:.3f} 1+-{MAX_DEVIATION} {verdict(is_met)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-engine", dest="engine", action="store_false", help="only count")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    setting = {**describe_machine("torch"), "rounds": options.rounds, "seed": SEED}
    for name, value in setting.items():
        print(f"{name:16} {value}")
    rows = count_ratios()
    early = {
        f"early_{policy}_steps": short_steps(policy, [LONG]) / short_steps(policy, [])
        for policy in POLICIES
    }
    if options.engine:
        for name, by_batch in time_ratios(options.rounds).items():
            for batch, row in by_batch.items():
                rows[name][batch] |= row
        early |= time_early_return(options.rounds)
    for name, by_batch in rows.items():
        for batch, row in by_batch.items():
            figures = "  ".join(f"{figure} {value:.2f}" for figure, value in row.items())
            print(f"{name:12} B={batch:<3} {figures}")
    for name, value in early.items():
        print(f"{name:28} {value:.2f}")
    print_bars(rows)
    if options.json:
        result = {"setting": setting, "ratios": rows, "early": early}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
