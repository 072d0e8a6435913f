"""Times of requests when a fixed number of them is always under way, as benchmarks have it."""

from dataclasses import dataclass
from typing import Literal

from placement.cost.iteration import Roofline, Work
from placement.cost.sizes import max_tokens

Batching = Literal["mixed", "prompts_first"]


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Clients that send their next request when the last one's answer is complete.

    ``batching`` is how the engine puts prompts into iterations: "mixed" ones have prompts and
    tokens of running sequences; or iterations of prompts alone go before all else, so that
    requests that came together also end together. An iteration takes ``max_num_batched_tokens``
    of prompts at most.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    batching: Batching = "mixed"
    max_num_batched_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class LoopTimes:
    """Mean TTFT and TPOT."""

    ttft_s: float
    tpot_s: float


def loop_times(roofline: Roofline, loop: ClosedLoop, memory_bytes: int) -> LoopTimes:
    """What such requests take, on average.

    A request generates ``output_tokens``, one an iteration. Meanwhile each of the others begins
    once, so that their prompts are computed in between: all of them if iterations are mixed. If
    prompts go first, requests come in waves, and one waits for half of its wave's prompts before
    its first token, and for the other half after it. More requests than the KV memory holds wait.

    Args:
        roofline: The model, on its devices.
        loop: The requests.
        memory_bytes: Of each device, for weights and KV.
    """
    context = loop.prompt_tokens + loop.output_tokens / 2
    num_tokens = max_tokens(roofline.shape, roofline.parallel, memory_bytes)
    running = max(1.0, min(loop.concurrency, num_tokens / context))
    if loop.batching == "mixed":
        times = _mixed(roofline, loop, running, context)
    else:
        times = _prompts_first(roofline, loop, running, context)
    # Those that don't fit wait for as many answers as are before them.
    waves = loop.concurrency / running - 1
    waiting_s = waves * (times.ttft_s + loop.output_tokens * times.tpot_s)
    return LoopTimes(times.ttft_s + waiting_s, times.tpot_s)


def _mixed(roofline: Roofline, loop: ClosedLoop, running: float, context: float) -> LoopTimes:
    length = loop.prompt_tokens
    together = max(1.0, min(running, loop.max_num_batched_tokens / length))
    prompts = Work.prompts(length, together)
    with_prompts_s = _seconds(
        roofline,
        Work(
            prompts.prompt_tokens,
            together,
            prompts.prompt_pairs,
            max(0.0, running - together),
            context,
        ),
    )
    decode_s = _seconds(roofline, Work.decode(running, context))
    share = min(1.0, (running - 1) / (together * loop.output_tokens))
    return LoopTimes(with_prompts_s, decode_s + share * max(0.0, with_prompts_s - decode_s))


def _prompts_first(
    roofline: Roofline, loop: ClosedLoop, running: float, context: float
) -> LoopTimes:
    length = loop.prompt_tokens
    together = max(1, min(int(running), loop.max_num_batched_tokens // length))
    prompt_s = _seconds(roofline, Work.prompts(length, together)) / together
    decode_s = _seconds(roofline, Work.decode(running, context))
    others_s = (running - 1) / 2 * prompt_s
    return LoopTimes(together * prompt_s + others_s, decode_s + others_s / loop.output_tokens)


def _seconds(roofline: Roofline, work: Work) -> float:
    return roofline.seconds(work) + roofline.calibration.iteration_s
