"""The client SDK for code without asyncio: the same calls, run by one background event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from fabric.client.aio import DEFAULT_TARGET, AsyncClient
from fabric.client.channel import TlsOptions
from fabric.client.options import GenerateOptions, PromptLike
from fabric.client.results import DrainOutcome, Tokenized
from fabric.client.retry import RetryPolicy
from fabric.client.stream import AsyncGenerationStream
from fabric.core.errors import RequestCancelled
from fabric.core.generation import Generation, StreamEvent
from fabric.core.plan_steps import PlanProgress
from fabric.core.request import SequenceDelta
from fabric.core.status import Explanation, FabricStatus, ModelStatus, PolicyChange, Residence
from fabric.core.weights import WeightState

T = TypeVar("T")


class _Portal:
    """An event loop in a thread of its own; other threads run coroutines in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fabric-client", daemon=True
        )
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; an interrupt of this thread cancels it."""
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise RequestCancelled("the client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RequestCancelled("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what still runs, and end the thread."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class GenerationStream:
    """The events of one answer; see ``AsyncGenerationStream``."""

    def __init__(self, portal: _Portal, stream: AsyncGenerationStream) -> None:
        self._portal = portal
        self._stream = stream

    @property
    def result(self) -> Generation:
        """The whole answer, once the stream has ended."""
        return self._stream.result

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        """The next event; raises as ``AsyncGenerationStream`` does."""
        event = self._portal.run(self._next_event())
        if event is None:
            raise StopIteration
        return event

    def text(self, index: int = 0) -> Iterator[str]:
        """Iterate over the pieces of one sequence's text as they become certain."""
        for event in self:
            if isinstance(event, SequenceDelta) and event.index == index and event.text:
                yield event.text

    def collect(self) -> Generation:
        """Read to the end and return the whole answer."""
        return self._portal.run(self._stream.collect())

    def close(self) -> None:
        """Cancel the RPC if it has not ended."""
        self._portal.run(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _next_event(self) -> StreamEvent | None:
        return await anext(self._stream, None)


class Client:
    """A connection to a fabric's router, for use from any number of threads.

        with Client("127.0.0.1:50051") as client:
            print(client.generate("my-model", "Once upon", max_tokens=64).text)

    Its methods are those of ``AsyncClient``.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TlsOptions | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Prepare a connection; the arguments are those of ``AsyncClient``."""

        async def make() -> AsyncClient:
            return AsyncClient(target, tls=tls, timeout_s=timeout_s, retry=retry, metadata=metadata)

        self._portal = _Portal()
        try:
            self._client = self._portal.run(make())
        except BaseException:
            self._portal.close()
            raise

    def generate(
        self, model: str, prompt: PromptLike, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Generate, and return everything at once."""
        return self._portal.run(self._client.generate(model, prompt, **options))

    def stream(
        self, model: str, prompt: PromptLike, **options: Unpack[GenerateOptions]
    ) -> GenerationStream:
        """Generate, and return tokens as they become ready."""
        return GenerationStream(self._portal, self._client.stream(model, prompt, **options))

    def tokenize(
        self, model: str, prompt: PromptLike, *, add_special_tokens: bool = True
    ) -> Tokenized:
        """Turn text or a conversation into the model's token ids."""
        return self._portal.run(
            self._client.tokenize(model, prompt, add_special_tokens=add_special_tokens)
        )

    def detokenize(
        self, model: str, token_ids: Sequence[int], *, skip_special_tokens: bool = False
    ) -> str:
        """Turn token ids into text."""
        return self._portal.run(
            self._client.detokenize(model, token_ids, skip_special_tokens=skip_special_tokens)
        )

    def models(self) -> tuple[ModelStatus, ...]:
        """The served models."""
        return self._portal.run(self._client.models())

    def model(self, model: str) -> ModelStatus:
        """One served model."""
        return self._portal.run(self._client.model(model))

    def status(self) -> FabricStatus:
        """What runs, where, and how loaded it is."""
        return self._portal.run(self._client.status())

    def drain(self, group: str = "", *, timeout_s: float | None = None) -> DrainOutcome:
        """Stop new requests to a device group, or to all and the router; wait for the others."""
        return self._portal.run(self._client.drain(group, timeout_s=timeout_s))

    def explain(
        self, group: str = "", *, request_id: str = "", limit: int | None = None
    ) -> Explanation:
        """Where requests in flight are, why they had to give way, and what that cost."""
        return self._portal.run(self._client.explain(group, request_id=request_id, limit=limit))

    def set_policy(
        self, policy: str, group: str = "", *, numbers: Mapping[str, float] | None = None
    ) -> tuple[PolicyChange, ...]:
        """Switch the scheduling policy of a device group, or of all; no request is dropped."""
        return self._portal.run(self._client.set_policy(policy, group, numbers=numbers))

    def set_residence(
        self,
        model: str,
        state: WeightState | None = None,
        pinned: bool | None = None,
        *,
        group: str = "",
        timeout_s: float = 60.0,
    ) -> tuple[Residence, ...]:
        """Bring a model's weights to the device or take them away; no request is dropped.

        With ``pinned`` alone this returns as soon as the model is pinned, which may be before its
        weights are there; give RESIDENT, too, to wait for them.
        """
        return self._portal.run(
            self._client.set_residence(model, state, pinned, group=group, timeout_s=timeout_s)
        )

    def apply_plan(
        self, plan: str, *, dry_run: bool = False, timeout_s: float | None = None
    ) -> Iterator[PlanProgress]:
        """Move the fabric to another placement plan; no request is dropped."""
        steps = self._client.apply_plan(plan, dry_run=dry_run, timeout_s=timeout_s)

        async def next_step() -> PlanProgress | None:
            return await anext(steps, None)

        try:
            while (progress := self._portal.run(next_step())) is not None:
                yield progress
        finally:
            self._portal.run(steps.aclose())

    def health(self, service: str = "") -> bool:
        """Whether the router, or one of its services by full name, can serve now."""
        return self._portal.run(self._client.health(service))

    def close(self) -> None:
        """Cancel what is in flight, close the connection and end the background thread."""
        with contextlib.suppress(RequestCancelled):
            self._portal.run(self._client.aclose())
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
