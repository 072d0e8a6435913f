"""What the iteration-level simulator is tried on, and the real engine on devices of its kind."""

from collections import deque

import numpy as np

from fabric.core.clock import VirtualClock
from fabric.core.plan import ModelShare, ParallelConfig
from fabric.core.profile import CopySpeed, Profile
from fabric.core.request import GenerationRequest, SequenceDelta
from fabric.core.sampling import SamplingParams
from fabric.engine.engine import Engine
from fabric.engine.executor import ExecutorCosts
from fabric.engine.text_output import TextDelta
from fabric.kv.transfer import WorkerOrders
from fabric.scheduler.output import SampledTokens, SchedulerOutput, SequenceUpdate, StepResult
from placement.cost.model import ModelCost
from placement.simulator.iteration_level import SimulatedGroup, SimulatedModel
from placement.simulator.iteration_time import iteration_s
from placement.simulator.sim_group import build_group
from placement.workload.trace import Trace

MIB = 2**20
COPIES = tuple(CopySpeed("host", way, 2e9, 1e-4) for way in ("in", "out"))
PROFILE = Profile(
    prefill=((1, 0.01), (256, 0.02), (1024, 0.06)),
    decode=tuple((n, c, 0.01 + n * 0.0005 + n * c * 1e-6) for n in (1, 8, 64) for c in (16, 1024)),
    copies=COPIES,
)


def cost(
    profile: Profile = PROFILE, num_stages: int = 1, weight_mib: int = 64, **seconds: float
) -> ModelCost:
    """Costs of a model in equal stages, with 4 KiB of KV a token and stage."""
    return ModelCost(
        profile,
        (1.0 / num_stages,) * num_stages,
        (weight_mib * MIB,) * num_stages,
        (4096,) * num_stages,
        **seconds,
    )


def group(
    costs: list[ModelCost], memory_mib: int = 512, name: str = "g", **fields: object
) -> SimulatedGroup:
    models = tuple(SimulatedModel(ModelShare(f"m{i}"), each, 2048) for i, each in enumerate(costs))
    pipeline = ParallelConfig(pipeline=len(costs[0].stage_shares))
    return SimulatedGroup(name, pipeline, models, memory_mib * MIB, **fields)  # type: ignore[arg-type]


def trace(
    arrivals_s: np.ndarray | list[float],
    prompts: np.ndarray | int = 100,
    outputs: np.ndarray | int = 10,
    models: np.ndarray | int = 0,
) -> Trace:
    n = len(arrivals_s)
    models, prompts, outputs = (
        np.broadcast_to(np.asarray(x, np.int32), n).copy() for x in (models, prompts, outputs)
    )
    names = tuple(f"m{i}" for i in range(int(models.max()) + 1))
    arrivals_s = np.asarray(arrivals_s, np.float64)
    return Trace(names, float(arrivals_s[-1]), arrivals_s, models, prompts, outputs)


def poisson(rate_per_s: float, n: int, seed: int = 0, num_models: int = 1, mean: int = 60) -> Trace:
    draw = np.random.default_rng(seed)
    return trace(
        draw.exponential(1.0 / rate_per_s, n).cumsum(),
        1 + draw.geometric(1.0 / mean, n),
        draw.geometric(2.0 / mean, n),
        draw.integers(0, num_models, n),
    )


class VirtualStages:
    """Stands for a group's devices under the real engine; the clock moves while it is awaited."""

    failure = None
    costs = ExecutorCosts()

    def __init__(self, simulated: SimulatedGroup, clock: VirtualClock, requests: Trace) -> None:
        self.built = build_group(simulated)
        self.num_batches = simulated.parallel.pipeline
        self.seen: list[tuple[float, SchedulerOutput]] = []
        self._models = [model.cost for model in simulated.models]
        self._clock = clock
        self._requests = requests
        self._num_added = 0
        self._free_s = [0.0] * self.num_batches
        self.runs_ahead = self.num_batches == 1
        self._max_in_flight = self.num_batches + self.built.scheduler.runs_ahead
        self._flights: deque[tuple[float, SchedulerOutput]] = deque()

    def next_arrival_s(self) -> float:
        is_over = self._num_added == len(self._requests)
        return float("inf") if is_over else float(self._requests.arrivals_s[self._num_added])

    def take_arrived(self) -> GenerationRequest | None:
        i, source = self._num_added, self._requests
        if self.next_arrival_s() > self._clock.now():
            return None
        self._num_added += 1
        sampling = SamplingParams(max_tokens=int(source.output_tokens[i]), ignore_eos=True)
        model = source.names[source.models[i]]
        prompt = (0,) * int(source.prompt_tokens[i])
        return GenerationRequest(str(i), model, prompt, sampling, cache_salt=str(i))

    def submit(self, output: SchedulerOutput) -> None:
        self.seen.append((self._clock.now(), output))
        model = self._models[output.model]
        self._advance_to(self._clock.now() + model.overhead_s)
        done_s, seconds = self._clock.now(), iteration_s(model.profile, output)
        for stage, share in enumerate(model.stage_shares):
            done_s = self._free_s[stage] = max(done_s, self._free_s[stage]) + share * seconds
        loaded_s = self.built.moves.loaded_s(output.model) + 0.1 * seconds
        self._free_s[-1] = max(done_s, loaded_s)
        self._flights.append((self._free_s[-1], output))

    def collect(self) -> StepResult | None:
        done_s, output = self._flights[0]
        if len(self._flights) < self._max_in_flight and self.next_arrival_s() <= done_s:
            self._advance_to(self.next_arrival_s())
            return None
        self._flights.popleft()
        self._advance_to(done_s)
        sampled = (SampledTokens(item.key, (0,)) for item in output.scheduled if item.num_samples)
        return StepResult(output.step, tuple(sampled))

    def interrupt(self) -> None:
        """Whoever collects looks at what comes."""

    def move(self, orders: WorkerOrders) -> None:
        self.built.moves.begin(orders, self._clock.now())

    def take_finished(self, timeout_s: float = 0.0) -> list[object]:
        now, moves = self._clock.now(), self.built.moves
        if timeout_s:
            self._advance_to(min(now + timeout_s, max(now, moves.next_s)))
        return list(moves.take_finished(self._clock.now()))

    def close(self) -> None:
        """Nothing is open."""

    def _advance_to(self, at_s: float) -> None:
        # The clock adds; what it gives must be this very time.
        self._clock._now_s = max(at_s, self._clock.now())


class NoTexts:
    """Leaves tokens as they are."""

    def add(self, request: GenerationRequest) -> None:
        """Nothing to prepare."""

    def remove(self, request_id: str) -> None:
        """Nothing to forget."""

    def push(self, update: SequenceUpdate) -> TextDelta:
        return TextDelta(SequenceDelta(0, update.first_token, update.token_ids))


def scheduled_by_engine(
    simulated: SimulatedGroup, requests: Trace
) -> list[tuple[float, SchedulerOutput]]:
    """What the real engine schedules, and when."""
    clock = VirtualClock()
    stages = VirtualStages(simulated, clock, requests)
    engine = Engine(stages.built.scheduler, stages, NoTexts(), clock)  # type: ignore[arg-type]
    while engine.has_work or stages.next_arrival_s() < float("inf"):
        if not engine.has_work:
            stages._advance_to(stages.next_arrival_s())
        while (request := stages.take_arrived()) is not None:
            engine.add(request)
        engine.step()
    return stages.seen
