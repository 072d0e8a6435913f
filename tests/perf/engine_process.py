"""Engines in processes of their own, each driven by the arrivals that it was sent beforehand.

A run's requests, arrivals and start are sent to all processes first, so nothing but their own
loops and the processors decide on latencies. Each process has the engine's loop on its thread, as
a device group has, and a thread that submits requests when they arrive.
"""

import gc
import multiprocessing
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

from cpu_quota import pin
from open_loop import Served

from fabric.core.clock import MonotonicClock
from fabric.core.request import GenerationRequest, RequestOutput
from fabric.engine.build import build_engine
from fabric.engine.engine_loop import EngineLoop
from fabric.engine.settings import EngineSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang

LEAD_S = 0.2
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Place:
    """An engine, and the cores that its workers are pinned to: one for each, or none."""

    settings: EngineSettings
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """Requests with the seconds of their arrivals after ``start_s`` of the monotonic clock."""

    requests: tuple[GenerationRequest, ...]
    arrivals_s: tuple[float, ...]
    start_s: float


class Misses:
    """Counts requests that missed their objectives, over all processes of a run."""

    def __init__(self, context: ForkServerContext) -> None:
        self._num_missed = context.Value("l", 0)
        self._num_allowed = context.Value("l", 0)
        self._is_hopeless = context.Event()

    def begin(self, num_allowed: int) -> None:
        """Start over; a run with more than so many is cut off."""
        self._num_missed.value, self._num_allowed.value = 0, num_allowed
        self._is_hopeless.clear()

    @property
    def is_hopeless(self) -> bool:
        """Whether the run is over because too many missed."""
        return self._is_hopeless.is_set()

    def add(self) -> None:
        """One more has missed."""
        with self._num_missed:
            self._num_missed.value += 1
            if self._num_missed.value > self._num_allowed.value:
                self._is_hopeless.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait so long, or until the run is hopeless."""
        return self._is_hopeless.wait(timeout_s)


def is_met(served: Served, request: GenerationRequest) -> bool:
    """Whether a request was served within its objectives."""
    wanted, num_more = request.objectives, served.num_output_tokens - 1
    ttft_s = served.first_token_s - served.arrived_s
    if wanted.ttft_s is not None and ttft_s > wanted.ttft_s:
        return False
    if wanted.tpot_s is None or not num_more:
        return True
    return (served.ended_s - served.first_token_s) / num_more <= wanted.tpot_s


class Recorder:
    """Times requests as their outputs are published."""

    def __init__(self, run: Run, misses: Misses) -> None:
        self._run = run
        self._misses = misses
        self._requests = {request.request_id: request for request in run.requests}
        names = (request.request_id for request in run.requests)
        self._arrived = dict(zip(names, run.arrivals_s, strict=True))
        self._first_tokens: dict[str, float] = {}
        self.served: list[Served] = []
        self.errors: list[str] = []

    def publish(self, outputs: list[RequestOutput]) -> None:
        """Called by the engine's loop once a step."""
        now_s = time.monotonic() - self._run.start_s
        for output in outputs:
            name = output.request_id
            if output.deltas:
                self._first_tokens.setdefault(name, now_s)
            if output.error is not None:
                self.errors.append(f"{name}: {output.error}")
            elif output.usage is not None:
                times_s = self._arrived[name], self._first_tokens[name], now_s
                self._add(Served(name, *times_s, output.usage.completion_tokens))

    def _add(self, served: Served) -> None:
        self.served.append(served)
        if not is_met(served, self._requests[served.request_id]):
            self._misses.add()

    @property
    def num_ended(self) -> int:
        """Requests that have ended, one way or the other."""
        return len(self.served) + len(self.errors)


class LoopDriver:
    """An engine's loop, and who is told of its outputs: one run's recorder after the other."""

    def __init__(self, place: Place, stack: ExitStack) -> None:
        settings, clock = place.settings, MonotonicClock()
        gang = None
        if settings.parallel.num_devices > 1:
            host = ProcessShardHost(settings.parallel)
            stack.callback(host.stop)
            gang = start_gang(settings, host)
            for pid, core in zip(host.pids, place.cores, strict=bool(place.cores)):
                pin([pid], core)
        built = build_engine(settings, clock=clock, gang=gang)
        self.loop = EngineLoop(built.engine, tuple(model.served for model in built.models), clock)
        self._recorder: Recorder | None = None
        self.loop.start(self._publish)
        stack.callback(self.loop.stop)

    def drive(self, run: Run, misses: Misses) -> Recorder:
        """Submit requests when they arrive; return when all have ended, or the run is hopeless."""
        self._recorder = recorder = Recorder(run, misses)
        gc.collect()
        gc.disable()
        for request, arrival_s in zip(run.requests, run.arrivals_s, strict=True):
            while (wait_s := run.start_s + arrival_s - time.monotonic()) > 0:
                if misses.wait(wait_s):
                    break
            if misses.is_hopeless:
                break
            self.loop.submit(request)
        while recorder.num_ended < len(run.requests) and not misses.wait(0.01):
            pass
        gc.enable()
        self._recorder = None
        if recorder.num_ended < len(run.requests):
            self._cancel(run)
        return recorder

    def _publish(self, outputs: list[RequestOutput]) -> None:
        if self._recorder is not None:
            self._recorder.publish(outputs)

    def _cancel(self, run: Run) -> None:
        for request in run.requests:
            self.loop.cancel(request.request_id)
        self.loop.explain().result()
        while (load := self.loop.report()).num_running or load.num_waiting:
            time.sleep(0.01)


class EngineProcess:
    """An engine in another process."""

    def __init__(self, place: Place, misses: Misses, context: ForkServerContext) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(theirs, place, misses))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until the engine is built.

        Raises:
            RuntimeError: The process has ended instead; it has said why.
        """
        if not self._connection.poll(START_TIMEOUT_S):
            raise RuntimeError("an engine took too long to start")
        self._receive()

    def begin(self, run: Run) -> None:
        """Send a run's requests; it begins at its time."""
        self._connection.send(run)

    def finish(self) -> list[Served]:
        """Wait until the run is over.

        Raises:
            RuntimeError: A request ended with an error, or the process has ended.
        """
        served, errors = self._receive()
        if errors:
            raise RuntimeError(f"{len(errors)} requests failed, the first of them {errors[0]}")
        return list(served)

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            raise RuntimeError("an engine's process has ended by itself") from None

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Fleet:
    """Processes that serve one load together, each of them some models."""

    def __init__(self, places: Iterable[Place], stack: ExitStack) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([build_engine.__module__])
        self.misses = Misses(context)
        self._processes: list[EngineProcess] = []
        self._owners: dict[str, EngineProcess] = {}
        stack.callback(self.close)
        for place in places:
            process = EngineProcess(place, self.misses, context)
            self._processes.append(process)
            models = place.settings.worker.models
            self._owners |= {model.model: process for model in models}
        for process in self._processes:
            process.wait_until_ready()

    @property
    def pids(self) -> list[int]:
        """The processes, in the order of the places."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()

    def serve(
        self,
        requests: list[GenerationRequest],
        arrivals_s: list[float],
        num_allowed: int | None = None,
    ) -> list[Served]:
        """Serve requests where their models are; return those that ended, in the requests' order.

        With ``num_allowed``, the run is cut off when more than so many missed their objectives.
        """
        self.misses.begin(len(requests) if num_allowed is None else num_allowed)
        start_s = time.monotonic() + LEAD_S
        shares: dict[EngineProcess, list[tuple[GenerationRequest, float]]] = {
            process: [] for process in self._processes
        }
        for request, arrival_s in zip(requests, arrivals_s, strict=True):
            shares[self._owners[request.model]].append((request, arrival_s))
        for process, share in shares.items():
            chosen, times_s = zip(*share, strict=True) if share else ((), ())
            process.begin(Run(chosen, times_s, start_s))
        served = {one.request_id: one for process in shares for one in process.finish()}
        return [served[name] for request in requests if (name := request.request_id) in served]


def _live(connection: Connection, place: Place, misses: Misses) -> None:
    """Be an engine's process until the connection ends."""
    with ExitStack() as stack:
        if place.cores and place.settings.parallel.num_devices == 1:
            pin([multiprocessing.current_process().pid or 0], place.cores[0])
        driver = LoopDriver(place, stack)
        connection.send("ready")
        while True:
            try:
                run = connection.recv()
            except EOFError:
                return
            recorder = driver.drive(run, misses)
            connection.send((recorder.served, recorder.errors))
