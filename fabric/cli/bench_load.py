"""Sends a benchmark's requests at their times, whether or not earlier ones were answered."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fabric.cli.bench_metrics import RequestRecord
from fabric.cli.bench_prompts import PlannedRequest, as_sent
from fabric.client import (
    AsyncClient,
    Completed,
    FabricError,
    GenerateOptions,
    Objectives,
    Overloaded,
    SequenceDelta,
    Started,
    Timing,
)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How the requests are sent.

    ``max_concurrency`` bounds the requests in flight; those that wait for a place do so on the
    clock of their latency. ``is_chat`` sends a text prompt as a user's message.
    ``tells_lengths`` says how long each answer will be at most, as a perfect guess would.
    ``objectives`` are what requests to a model ask for.
    """

    max_concurrency: int | None = None
    is_chat: bool = False
    tells_lengths: bool = False
    generate: GenerateOptions | None = None
    objectives: Mapping[str, Objectives] = field(default_factory=dict)


class _Watch:
    """Takes down one request's times and counts as its events come."""

    def __init__(self, request: PlannedRequest, scheduled_s: float) -> None:
        self._model = request.model
        self._arrival_s = request.at_s
        self._scheduled_s = scheduled_s
        self._input_len = 0 if isinstance(request.prompt, str) else len(request.prompt)
        self._timing = Timing()
        self._texts: list[str] = []
        self._message_lens: list[int] = []
        self._token_times_s: list[float] = []

    def see(self, event: Started | SequenceDelta | Completed) -> None:
        if isinstance(event, Started):
            self._input_len = event.prompt_tokens
        elif isinstance(event, Completed):
            self._timing = event.timing
        else:
            self._texts.append(event.text)
            if event.token_ids:
                self._message_lens.append(len(event.token_ids))
                self._token_times_s.append(time.perf_counter())

    def record(self, error: FabricError | None = None) -> RequestRecord:
        times_s = self._token_times_s or [time.perf_counter()]
        return RequestRecord(
            arrival_s=self._arrival_s,
            input_len=self._input_len,
            output_len=sum(self._message_lens),
            ttft_s=times_s[0] - self._scheduled_s,
            itls_s=tuple(b - a for a, b in itertools.pairwise(times_s)),
            e2e_s=times_s[-1] - self._scheduled_s,
            num_preemptions=self._timing.num_preemptions,
            swapped_bytes=self._timing.swapped_bytes,
            message_lens=tuple(self._message_lens),
            text="".join(self._texts),
            error="" if error is None else f"{type(error).__name__}: {error.message}",
            is_refused=isinstance(error, Overloaded),
            load_s=self._timing.load_s,
            model=self._model,
        )


async def run_load(
    client: AsyncClient, requests: Sequence[PlannedRequest], options: LoadOptions
) -> tuple[list[RequestRecord], float]:
    """Send every request at its time; a failed one becomes a record with its error.

    Args:
        client: Should not retry: a repeated request would hide the failure.
        requests: In the order of their times.
        options: How they are sent.

    Returns:
        One record a request, in their order, and the seconds until the last one ended.
    """
    limit = options.max_concurrency
    places = asyncio.Semaphore(limit) if limit else contextlib.nullcontext()
    start_s = time.perf_counter()

    async def send(request: PlannedRequest) -> RequestRecord:
        async with places:
            return await _send(client, request, start_s + request.at_s, options)

    async with asyncio.TaskGroup() as group:
        tasks = []
        for request in requests:
            await asyncio.sleep(max(start_s + request.at_s - time.perf_counter(), 0))
            tasks.append(group.create_task(send(request)))
    return [task.result() for task in tasks], time.perf_counter() - start_s


async def warm_up(
    client: AsyncClient, requests: Sequence[PlannedRequest], num_requests: int, options: LoadOptions
) -> None:
    """Send each model's first request several times, one after the other, unmeasured.

    Raises:
        RequestError: One failed, so that the benchmark would too.
    """
    firsts = {request.model: request for request in reversed(requests)}
    for request in firsts.values():
        for _ in range(num_requests):
            await send_alone(client, request, options)


async def send_alone(client: AsyncClient, request: PlannedRequest, options: LoadOptions) -> float:
    """Send one request now, and return the seconds until its last token.

    Raises:
        RequestError: It failed.
    """
    watch = _Watch(request, time.perf_counter())
    await _see_all(client, request, options, watch)
    return watch.record().e2e_s


async def _send(
    client: AsyncClient, request: PlannedRequest, scheduled_s: float, options: LoadOptions
) -> RequestRecord:
    watch = _Watch(request, scheduled_s)
    try:
        await _see_all(client, request, options, watch)
    except FabricError as error:
        return watch.record(error)
    return watch.record()


async def _see_all(
    client: AsyncClient, request: PlannedRequest, options: LoadOptions, watch: _Watch
) -> None:
    prompt = as_sent(request.prompt, is_chat=options.is_chat)
    generate = _options_of(request, options)
    async with client.stream(request.model, prompt, **generate) as stream:
        async for event in stream:
            watch.see(event)


def _options_of(request: PlannedRequest, options: LoadOptions) -> GenerateOptions:
    generate: GenerateOptions = {**(options.generate or {}), "max_tokens": request.max_tokens}
    if options.tells_lengths:
        generate["expected_tokens"] = request.max_tokens
    if request.model in options.objectives:
        generate["objectives"] = options.objectives[request.model]
    return generate
