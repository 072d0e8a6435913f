"""The processes that router.py measures: a bare gRPC server, a router, and a token source.

Each prints the port that it listens on, and ends when its standard input does.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from fabric.core.request import (
    FinishReason,
    GenerationRequest,
    LoadReport,
    ModelCard,
    RequestOutput,
    SequenceDelta,
    ServedModel,
    Timing,
    Usage,
)
from fabric.core.sampling import GenerationDefaults, RequestLimits
from fabric.engine.group_engine import GroupEngine
from fabric.engine.link_server import LinkServer, LinkSettings
from fabric.router.connection import GroupAddress
from fabric.router.server import RouterServer, RouterSettings
from fabric.rpc.v1 import inference_pb2 as pb
from fabric.rpc.v1 import inference_pb2_grpc

MODEL = "tokens"
SECRET = "perf"
VOCAB_SIZE = 32_000
MAX_MODEL_LEN = 65_536
MAX_UNSENT_BYTES = 64 * 1024
TEXT = " token"


class TokenSource:
    """A GroupEngine that steps on and on: each step has a token for every stream.

    Steps follow each other as fast as the link takes them, or every ``priority`` microseconds
    of the first request in flight, if that is not 0.
    """

    def __init__(self) -> None:
        self._live: dict[str, tuple[GenerationRequest, int]] = {}
        self._wake = asyncio.Event()

    def submit(self, request: GenerationRequest) -> None:
        self._live[request.request_id] = (request, 0)
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        self._live.pop(request_id, None)

    def report(self) -> LoadReport:
        return LoadReport(num_running=len(self._live))

    def served(self) -> tuple[ServedModel, ...]:
        card = ModelCard(MODEL, "/nowhere", MAX_MODEL_LEN, VOCAB_SIZE, "float32", "None")
        limits = RequestLimits(MAX_MODEL_LEN, VOCAB_SIZE)
        return (ServedModel(card, GenerationDefaults(), limits),)

    async def step_forever(self, link: LinkServer) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            while not self._live:
                self._wake.clear()
                await self._wake.wait()
                next_s = loop.time()
            first, _ = next(iter(self._live.values()))
            link.publish(self._step())
            next_s += first.priority * 1e-6
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            while link.unsent_bytes > MAX_UNSENT_BYTES:
                await asyncio.sleep(0.0005)

    def _step(self) -> list[RequestOutput]:
        outputs = []
        for key, (request, position) in tuple(self._live.items()):
            num_tokens = request.sampling.max_tokens
            is_last = position + 1 == num_tokens
            reason = FinishReason.LENGTH if is_last else None
            delta = SequenceDelta(0, position, (100 + position % 1000,), TEXT, (), reason)
            if is_last:
                del self._live[key]
                usage = Usage(len(request.prompt_token_ids), num_tokens)
                outputs.append(RequestOutput(key, (delta,), usage, Timing()))
            else:
                self._live[key] = (request, position + 1)
                outputs.append(RequestOutput(key, (delta,)))
        return outputs


class BareServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The same messages with nothing behind them: one token a message."""

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        spec = request.spec
        started = pb.Started(request_id="0" * 32, model=spec.model, prompt_tokens=32, seed=2**63)
        yield pb.GenerateStreamResponse(started=started)
        last = spec.stopping.max_tokens - 1
        for position in range(last + 1):
            is_last = position == last
            reason = pb.FINISH_REASON_LENGTH if is_last else pb.FINISH_REASON_UNSPECIFIED
            ids = (100 + position % 1000,)
            delta = pb.SequenceDelta(
                first_token=position, token_ids=ids, text=TEXT, finish_reason=reason
            )
            yield pb.GenerateStreamResponse(delta=delta)
        completed = pb.Completed(usage=pb.Usage(prompt_tokens=32, completion_tokens=last + 1))
        yield pb.GenerateStreamResponse(completed=completed)


async def serve_bare() -> None:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(BareServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await _announce(port)
    await server.stop(0)


async def serve_source() -> None:
    source = TokenSource()
    # Nobody asks it to explain itself, or to change anything.
    link = LinkServer(cast(GroupEngine, source), LinkSettings("source", 1, SECRET))
    _, port = await link.start()
    stepping = asyncio.create_task(source.step_forever(link))
    await _announce(port)
    stepping.cancel()
    await link.stop()


async def serve_router(source_port: int) -> None:
    router = RouterServer(RouterSettings(SECRET, model_ids=(MODEL,)), load_tokenizer=_no_tokenizer)
    port = await router.start()
    router.set_groups((GroupAddress("source", "127.0.0.1", source_port, 1),))
    await _announce(port)
    await router.stop(0)


def _no_tokenizer(path: Path) -> Any:
    raise AssertionError("prompts are sent as token ids here")


async def _announce(port: int) -> None:
    """Tell the port, then wait for the parent to leave."""
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("bare", "source", "router"))
    parser.add_argument("--source-port", type=int, default=0)
    arguments = parser.parse_args()
    roles: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "bare": serve_bare,
        "source": serve_source,
        "router": lambda: serve_router(arguments.source_port),
    }
    asyncio.run(roles[arguments.role]())


if __name__ == "__main__":
    main()
