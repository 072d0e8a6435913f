"""At which batch a model would run on a device group: what a request-level view of it rests on."""

from collections.abc import Callable
from dataclasses import dataclass

from fabric.core.request import Objectives
from placement.cost.model import ModelCost

# A decode step may take this share of what the objective allows: prompts and other models'
# iterations come between.
STEP_MARGIN = 0.7
# Without an objective for each token: batches grow until a step takes so many times the least.
MAX_SLOWDOWN = 2.0
CROWDING = 2.0
# Those that come in one burst share their steps, however rare bursts are.
LEAST_AT_ONCE = 8
NUM_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Demands:
    """What a model's requests are like: rate, mean lengths, and the longest sequence allowed."""

    rate_per_s: float
    prompt_tokens: float
    output_tokens: float
    max_model_len: int

    @property
    def mean_context(self) -> int:
        """Tokens that a sequence has on average while it decodes."""
        return max(1, round(self.prompt_tokens + self.output_tokens / 2))


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Sequences of one batch, and the seconds of its decode step from first stage to last."""

    batch: int
    step_s: float

    def service(self, cost: ModelCost, prompt_tokens: float, output_tokens: float) -> "Service":
        """How one request is served among others."""
        prefill_s = cost.profile.prefill_s(round(prompt_tokens)) + cost.overhead_s
        num_steps = max(0.0, output_tokens - 1.0)
        return Service(
            busy_s=prefill_s + num_steps * self.step_s / self.batch,
            ttft_s=prefill_s,
            e2e_s=prefill_s + num_steps * self.step_s,
        )


@dataclass(frozen=True, slots=True)
class Service:
    """A request that waits for nobody: seconds it takes of the devices, and until its tokens."""

    busy_s: float
    ttft_s: float
    e2e_s: float


def step_s(cost: ModelCost, batch: int, context: int) -> float:
    """Seconds of a decode step of a batch, scheduling included."""
    return cost.profile.decode_s(batch, context) + cost.overhead_s


def operating_point(
    cost: ModelCost, demands: Demands, objectives: Objectives, free_bytes: int, max_num_seqs: int
) -> OperatingPoint | None:
    """The batch that a model's requests would share, if its steps are quick enough and KV fits.

    It is no more than those steps and the memory allow, and no more than there are sequences at
    once when all of the model's requests come here and stay ``CROWDING`` times as long as they
    would alone, but at least ``LEAST_AT_ONCE``: a step for two sequences takes almost as much of
    a device as one for twenty.

    Args:
        cost: Of the model on the group.
        demands: Of its requests.
        objectives: Of its requests; ``tpot_s`` bounds the step.
        free_bytes: Memory of the fullest device beside the weights.
        max_num_seqs: The scheduler's limit.

    Returns:
        None if not even one sequence of the model's length fits, or a step of one is too slow.
    """
    context, token_bytes = demands.mean_context, max(cost.kv_token_bytes)
    if demands.max_model_len * token_bytes > free_bytes:
        return None
    least_s = step_s(cost, 1, context)
    if objectives.tpot_s is not None and least_s > objectives.tpot_s:
        return None
    allowed_s = MAX_SLOWDOWN * least_s
    if objectives.tpot_s is not None:
        allowed_s = max(least_s, STEP_MARGIN * objectives.tpot_s)
    elif objectives.e2e_s is not None:
        allowed_s = max(least_s, STEP_MARGIN * objectives.e2e_s / max(1.0, demands.output_tokens))
    room = max(1, min(max_num_seqs, free_bytes // max(1, token_bytes * context)))
    allowed = _largest(lambda size: step_s(cost, size, context) <= allowed_s, room)
    batch = _num_at_once(cost, demands, allowed)
    return OperatingPoint(batch, step_s(cost, batch, context))


def _largest(is_allowed: Callable[[int], bool], room: int) -> int:
    """The largest batch up to ``room`` that is allowed, if none is that is larger than another."""
    low, high = 1, room + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_allowed(middle) else (low, middle)
    return low


def _num_at_once(cost: ModelCost, demands: Demands, most: int) -> int:
    """Sequences at once (Little's law), which depends on how long their own batch keeps them."""
    prefill_s = cost.profile.prefill_s(round(demands.prompt_tokens)) + cost.overhead_s
    size = least = min(LEAST_AT_ONCE, most)
    for _ in range(NUM_ROUNDS):
        steps_s = max(0.0, demands.output_tokens - 1.0) * step_s(cost, size, demands.mean_context)
        size = max(least, min(most, round(CROWDING * demands.rate_per_s * (prefill_s + steps_s))))
    return size


def kv_bytes(cost: ModelCost, demands: Demands, point: OperatingPoint, free_bytes: int) -> int:
    """What the model's KV should have on the fullest device.

    Twice what the sequences that run on average hold (Little's law), so that bursts find room; at
    least one sequence of the model's length, and no more than there is beside the weights.
    """
    service = point.service(cost, demands.prompt_tokens, demands.output_tokens)
    running = demands.rate_per_s * service.e2e_s
    tokens = max(float(demands.max_model_len), 2.0 * running * demands.mean_context)
    return min(free_bytes, round(tokens * max(cost.kv_token_bytes)))
