"""What paging saves: KV memory reserved but unused, concurrency, and requests a second.

Run: python tests/perf/paging.py [--rounds 5] [--no-engine] [--json OUT]. One scheduler with four
ways to give memory: runs of neighbouring slots by a buddy allocator for the model's context
(max), for the output rounded up to a power of two (pow2) or exactly (oracle), or blocks as they
are needed (paged). Source: vLLM (Kwon et al., SOSP 2023), section 6.1.

Waste and concurrency are counted, without a model, while requests wait: every iteration after the
first fifth weighs the same. Waste is the share of taken slots that hold no token. The slots of the
pool are those of tokens, later (the sequence will use them), internal (it never will) and free
(too few, or too scattered, for the next request). ``predicted`` is the waste by arithmetic on the
same lengths; ``unrounded`` the same if runs needn't be powers of two.

Requests a second: a pool no larger than the context of stories260K, Poisson arrivals, the rate at
which the mean of a request's seconds per output token is four times what it is alone; found by
bisection, contenders taking turns, medians over rounds of other requests. Once with the model on
this CPU, whose iterations take longer the more sequences they hold, and once without it, every
iteration taking the same (labelled modelled).
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from contenders import CONTENDERS, Memory, answer, make_engine, make_requests, make_scheduler
from lengths import Lengths, draw_lengths, poisson_arrivals
from machine import describe_machine, verdict
from open_loop import mean_s_per_token, serve

from fabric.core.clock import Clock, MonotonicClock, VirtualClock

SEED = 1
BLOCK_SIZE = 16
BLOCK_SIZES = (8, 32, 64, 128)
SWEPT = ("sharegpt_like", "alpaca_like")
NO_LIMIT = 4096
RATE_TRACE, RATE_SCALE, NUM_REQUESTS = "sharegpt_like", 4, 80
POOL = Memory(num_slots=512, block_size=BLOCK_SIZE, max_model_len=512)
SLOWDOWN = 4.0
# Rates are looked for between these multiples of what one request after the other would be.
RATES, NUM_HALVINGS = (0.5, 8.0), 6
RATED = {"modelled": ("max", "pow2", "oracle", "paged"), "measured": ("oracle", "paged")}
CHATS = ("azure_conv", "sharegpt_like")
MAX_DEVIATION, MIN_CONCURRENCY, MIN_RATE = 0.2, 4.0, 1.5


@dataclass(frozen=True)
class Setup:
    """A trace and the pool that it is served from, in slots."""

    num_requests: int
    num_slots: int
    max_model_len: int


SETUPS = {
    "azure_conv": Setup(800, 60_000, 8192),
    "azure_code": Setup(2000, 60_000, 8192),
    "sharegpt_like": Setup(600, 15_700, 2048),
    "alpaca_like": Setup(2000, 15_700, 2048),
}


@dataclass
class Slots:
    """Slots of one iteration by what is in them; ``free`` are in no sequence's table."""

    live: int = 0
    later: int = 0
    internal: int = 0
    free: int = 0
    num_running: int = 0

    def add(self, live: int, held: int, needed: int) -> None:
        """Count a sequence's ``held`` slots: ``live`` are in use, ``needed`` will be at its end."""
        self.num_running += 1
        self.live += live
        self.later += min(held, needed) - live
        self.internal += max(held - needed, 0)

    @property
    def waste(self) -> float:
        return 1 - self.live / (self.live + self.later + self.internal)


def count_slots(name: str, memory: Memory, lengths: Lengths) -> dict[str, float]:
    """Serve all requests, and average over the iterations in which some wait."""
    contender = CONTENDERS[name]
    kv = contender.kv(memory)
    scheduler = make_scheduler(contender, memory, kv, NO_LIMIT)
    for request in make_requests(lengths):
        scheduler.add(request, 0.0)
    needed: dict[int, int] = {}
    iterations: list[Slots] = []
    while len(needed) < len(lengths):
        output = scheduler.schedule(0.0)
        for new in output.new_sequences:
            # The last token's KV is never needed.
            needed[new.key] = new.num_prompt_tokens + new.sampling.max_tokens - 1
        slots = Slots(free=kv.num_free_blocks * memory.block_size)
        for item in output.scheduled:
            held = kv.num_own_blocks(item.key) * memory.block_size
            slots.add(item.num_computed_tokens + item.num_new_tokens, held, needed[item.key])
        iterations.append(slots)
        scheduler.update_from_output(output, answer(output), 0.0)
    return averages(iterations[len(iterations) // 5 :], scheduler.report().num_preemptions)


def averages(iterations: list[Slots], num_preemptions: int) -> dict[str, float]:
    mean = statistics.fmean
    live, num_running = (mean(getattr(s, n) for s in iterations) for n in ("live", "num_running"))
    pool = [s.live + s.later + s.internal + s.free for s in iterations]
    shares = {
        kind: mean(getattr(s, kind) / total for s, total in zip(iterations, pool, strict=True))
        for kind in ("live", "later", "internal", "free")
    }
    return {
        "waste": mean(s.waste for s in iterations),
        **shares,
        "concurrency": num_running,
        "mean_live_tokens": live / num_running,
        "num_preemptions": num_preemptions,
    }


def predict(name: str, lengths: Lengths, setup: Setup) -> dict[str, float]:
    """What contiguous runs give by arithmetic; unrounded: if they needn't be powers of two."""
    live = sum(o * p + o * (o - 1) / 2 for p, o in lengths)
    rounded = exact = 0
    for prompt, output in lengths:
        ahead = {"max": setup.max_model_len, "pow2": power_of_2(output), "oracle": output}[name]
        size = min(prompt + ahead, setup.max_model_len)
        exact += output * size
        rounded += output * power_of_2(size)
    num_output = sum(output for _, output in lengths)
    return {
        "predicted": 1 - live / rounded,
        "unrounded": 1 - live / exact,
        "unrounded_concurrency": setup.num_slots * num_output / exact,
    }


def power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def count_trace(name: str, setup: Setup) -> dict[str, dict[str, float]]:
    lengths = draw_lengths(name, setup.num_requests, SEED, max_len=setup.max_model_len)
    rows: dict[str, dict[str, float]] = {}
    for contender in ("max", "pow2", "oracle"):
        memory = Memory(setup.num_slots, 1, setup.max_model_len)
        row = count_slots(contender, memory, lengths)
        rows[contender] = row | predict(contender, lengths, setup)
    for size in (BLOCK_SIZE, *(BLOCK_SIZES if name in SWEPT else ())):
        row = count_slots("paged", Memory(setup.num_slots, size, setup.max_model_len), lengths)
        rows[f"paged_{size}"] = row | {"predicted": size / 2 / row["mean_live_tokens"]}
    return rows


def run_at(name: str, rate_per_s: float, lengths: Lengths, seed: int, clock: Clock) -> float:
    """Mean seconds per token of a contender if requests arrive at this rate."""
    contender = CONTENDERS[name]
    scheduler = make_scheduler(contender, POOL, contender.kv(POOL), NO_LIMIT)
    arrivals_s = poisson_arrivals(len(lengths), rate_per_s, seed)
    with closing(make_engine(scheduler, POOL, clock=clock)) as engine:
        return mean_s_per_token(serve(engine, list(make_requests(lengths)), arrivals_s, clock))


def find_rates(names: Sequence[str], seed: int, clock: Clock) -> dict[str, float]:
    """Requests a second at which each contender is ``SLOWDOWN`` times as slow as one request."""
    lengths = draw_lengths(RATE_TRACE, NUM_REQUESTS, seed, RATE_SCALE, POOL.max_model_len)
    alone_s = statistics.fmean(run_at("paged", 1.0, [pair], seed, clock) for pair in lengths[:10])
    request_s = alone_s * statistics.fmean(output for _, output in lengths)
    low, high = (dict.fromkeys(names, factor / request_s) for factor in RATES)
    for _ in range(NUM_HALVINGS):
        for name in names:
            rate = math.sqrt(low[name] * high[name])
            is_quick = run_at(name, rate, lengths, seed, clock) <= SLOWDOWN * alone_s
            (low if is_quick else high)[name] = rate
    return {name: math.sqrt(low[name] * high[name]) for name in names}


def compare_rates(kind: str, num_rounds: int) -> dict[str, float]:
    """Rates of all contenders, and their ratios to paged, medians over rounds."""
    rounds = []
    for number in range(num_rounds):
        clock = VirtualClock() if kind == "modelled" else MonotonicClock()
        rounds.append(find_rates(RATED[kind], SEED + number, clock))
    figures = {}
    for name in RATED[kind]:
        figures[f"{kind}_{name}_per_s"] = statistics.median(rates[name] for rates in rounds)
        if name != "paged":
            ratios = [rates["paged"] / rates[name] for rates in rounds]
            figures[f"{kind}_paged_by_{name}"] = statistics.median(ratios)
            figures[f"{kind}_paged_by_{name}_min"] = min(ratios)
    return figures


def print_bars(counted: dict[str, dict[str, dict[str, float]]], rates: dict[str, float]) -> None:
    paged = f"paged_{BLOCK_SIZE}"
    for name, rows in counted.items():
        share = rows[paged]["waste"] / rows[paged]["predicted"]
        is_met = abs(share - 1) <= MAX_DEVIATION
        print(f"BAR waste_{name} {share:.3f} 1+-{MAX_DEVIATION} {verdict(is_met)}")
    for name in CHATS:
        value = counted[name][paged]["concurrency"] / counted[name]["max"]["concurrency"]
        is_met = value >= MIN_CONCURRENCY
        print(f"BAR concurrency_by_max_{name} {value:.2f} {MIN_CONCURRENCY} {verdict(is_met)}")
    for kind in RATED:
        if (rate := rates.get(f"{kind}_paged_by_oracle")) is not None:
            print(f"BAR rate_by_oracle_{kind} {rate:.2f} {MIN_RATE} {verdict(rate >= MIN_RATE)}")


def print_counted(counted: dict[str, dict[str, dict[str, float]]]) -> None:
    for name, rows in counted.items():
        for contender, row in rows.items():
            figures = "  ".join(f"{figure} {value:.3f}" for figure, value in row.items())
            print(f"{name:14} {contender:10} {figures}")
        paged, oracle = rows[f"paged_{BLOCK_SIZE}"]["concurrency"], rows["oracle"]
        print(
            f"{name:14} paged by oracle, concurrency: {paged / oracle['concurrency']:.2f}; "
            f"were runs of any length: {paged / oracle['unrounded_concurrency']:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-engine", dest="engine", action="store_false", help="no wall clock")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    setting = {**describe_machine("torch"), "rounds": options.rounds, "seed": SEED}
    for name, value in setting.items():
        print(f"{name:16} {value}")
    counted = {name: count_trace(name, setup) for name, setup in SETUPS.items()}
    print_counted(counted)
    rates = compare_rates("modelled", options.rounds)
    if options.engine:
        rates |= compare_rates("measured", options.rounds)
    for name, value in rates.items():
        print(f"{name:36} {value:.3f}")
    print_bars(counted, rates)
    if options.json:
        result = {"setting": setting, "counted": counted, "rates": rates}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
