"""A GroupEngine whose tokens are scripted: each is the number of its position."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from fabric.core.errors import InvalidRequest
from fabric.core.request import (
    FinishReason,
    GenerationRequest,
    LoadReport,
    ModelCard,
    ModelLoad,
    RequestOutput,
    SequenceDelta,
    ServedModel,
    ServicePace,
    Timing,
    Usage,
)
from fabric.core.sampling import GenerationDefaults, RequestLimits
from fabric.core.status import RequestPhase, RequestStatus
from fabric.core.weights import WeightState
from fabric.scheduler.policies import PolicyConfig

MODEL = "tiny"
VOCAB_SIZE = 512
MAX_MODEL_LEN = 256


def served(model: str = MODEL, pace: ServicePace | None = None) -> ServedModel:
    card = ModelCard(model, "/nowhere", MAX_MODEL_LEN, VOCAB_SIZE, "float32", "LlamaForCausalLM")
    limits = RequestLimits(MAX_MODEL_LEN, VOCAB_SIZE)
    return ServedModel(card, GenerationDefaults(), limits, pace or ServicePace())


class FakeEngine:
    """A GroupEngine whose thread makes one token a step for every sequence in flight.

    While ``going`` is clear there are no steps, and requests stay in flight. ``is_pausing`` makes
    it clear ``going`` after each step that made tokens. With ``is_silent``, questions stay open.

    ``weights`` is where its model's are; with ``is_slow`` they are long on their way.
    Reports tell of ``reported`` instead, if there is something.
    """

    def __init__(self) -> None:
        self.publish: Callable[[list[RequestOutput]], None] = lambda outputs: None
        self.load = LoadReport(num_blocks=8, num_free_blocks=8, policy="fcfs")
        self.models = (served(),)
        self.timing = Timing()
        self.submitted: list[GenerationRequest] = []
        self.cancelled: queue.Queue[str] = queue.Queue()
        self.going = threading.Event()
        self.going.set()
        self.is_pausing = False
        self.is_silent = False
        self.policies: list[PolicyConfig] = []
        self.weights = ModelLoad(MODEL)
        self.reported: ModelLoad | None = None
        self.wishes: list[tuple[WeightState | None, bool | None]] = []
        self.is_slow = False
        self._lock = threading.Lock()
        self._live: dict[str, tuple[GenerationRequest, int]] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.going.set()
        self._wake.set()
        self._thread.join()

    def submit(self, request: GenerationRequest) -> None:
        self.submitted.append(request)
        with self._lock:
            self._live[request.request_id] = (request, 0)
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        with self._lock:
            self._live.pop(request_id, None)
        self.cancelled.put(request_id)

    def report(self) -> LoadReport:
        models = (self.reported or self.weights,)
        return replace(self.load, num_running=len(self._live), models=models)

    def served(self) -> tuple[ServedModel, ...]:
        return self.models

    def explain(self) -> "Future[tuple[RequestStatus, ...]]":
        """The newest request ranks first."""
        answer: Future[tuple[RequestStatus, ...]] = Future()
        if self.is_silent:
            return answer
        with self._lock:
            live = tuple(self._live.values())
        statuses = (
            RequestStatus(
                request.request_id,
                request.model,
                RequestPhase.SWAPPED,
                request.tenant,
                request.priority,
                (0.0, -place),
                num_output_tokens=num_tokens,
                last_preemption=f"{request.request_id} ranks before it",
                timing=Timing(swapped_bytes=4096),
            )
            for place, (request, num_tokens) in enumerate(live)
        )
        answer.set_result(tuple(statuses))
        return answer

    def set_policy(self, config: PolicyConfig) -> "Future[tuple[str, str]]":
        answer: Future[tuple[str, str]] = Future()
        if config.ageing == 0.5:
            answer.set_exception(ZeroDivisionError("a bug"))
        elif not self.is_silent:
            answer.set_result((self.load.policy, config.name))
            self.policies.append(config)
            self.load = replace(self.load, policy=config.name)
        return answer

    def set_residence(
        self, model: str, state: WeightState | None, pinned: bool | None
    ) -> "Future[ModelLoad]":
        """Weights that are pinned can't be taken away."""
        answer: Future[ModelLoad] = Future()
        self.wishes.append((state, pinned))
        weights = self.weights if state is None else replace(self.weights, problem="")
        if pinned is not None:
            weights = replace(weights, pinned=pinned)
        if self.is_slow and state is WeightState.RESIDENT is not weights.state:
            weights = replace(weights, state=WeightState.LOADING)
        elif state is not None and not self.is_slow:
            weights = replace(weights, state=state)
        if weights.pinned and state in (WeightState.COLD, WeightState.HOST):
            answer.set_exception(InvalidRequest.of("state", f"is {state}, but {model} is pinned"))
        elif not self.is_silent:
            self.weights = weights
            answer.set_result(weights)
        return answer

    @property
    def num_live(self) -> int:
        return len(self._live)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self.going.wait()
            outputs = self._step()
            if outputs:
                if self.is_pausing and not self._stop.is_set():
                    self.going.clear()
                self.publish(outputs)

    def _step(self) -> list[RequestOutput]:
        with self._lock:
            outputs = [self._next(key, *state) for key, state in self._live.items()]
            for output in outputs:
                if output.is_last:
                    del self._live[output.request_id]
                else:
                    request, position = self._live[output.request_id]
                    self._live[output.request_id] = (request, position + 1)
            if not self._live:
                self._wake.clear()
        return outputs

    def _next(self, key: str, request: GenerationRequest, position: int) -> RequestOutput:
        sampling = request.sampling
        is_last = position + 1 == sampling.max_tokens
        reason = FinishReason.LENGTH if is_last else None
        deltas = tuple(
            SequenceDelta(i, position, (position,), f"{position} ", (), reason)
            for i in range(sampling.n)
        )
        if not is_last:
            return RequestOutput(key, deltas)
        count = sampling.n * sampling.max_tokens
        return RequestOutput(key, deltas, Usage(len(request.prompt_token_ids), count), self.timing)
