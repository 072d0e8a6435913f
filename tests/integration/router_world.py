"""A router and device groups over real sockets, with engines that are scripted threads."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fabric.core.errors import InvalidRequest
from fabric.core.request import ServedModel
from fabric.engine.link_server import LinkServer, LinkSettings
from fabric.router.catalog import GroupAddress
from fabric.router.server import RouterServer, RouterSettings
from fabric.rpc.v1 import control_pb2, control_pb2_grpc, inference_pb2_grpc
from fabric.rpc.v1 import inference_pb2 as pb
from tests.integration.fake_engine import MODEL, VOCAB_SIZE, FakeEngine

SECRET = "a shared secret"


class FakeTokenizer:
    """One token a character; a special token first."""

    @classmethod
    def load(cls, path: Path) -> "FakeTokenizer":
        return cls()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(c) % VOCAB_SIZE for c in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in token_ids if token > 1 or not skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        if not messages:
            raise InvalidRequest.of("prompt.chat", "has no messages")
        return self.encode("".join(m["role"][0] + ":" + m["content"] for m in messages))


@dataclass
class FakeGroup:
    """An engine with its link server."""

    engine: FakeEngine
    link: LinkServer
    address: GroupAddress

    async def stop(self) -> None:
        await self.link.stop()
        self.engine.stop()


async def start_group(
    name: str = "left", epoch: int = 1, port: int = 0, models: tuple[ServedModel, ...] = ()
) -> FakeGroup:
    engine = FakeEngine()
    engine.models = models or engine.models
    link = LinkServer(engine, LinkSettings(name, epoch, SECRET, port=port, report_interval_s=0.02))
    engine.publish = link.publish
    host, bound = await link.start()
    engine.start()
    return FakeGroup(engine, link, GroupAddress(name, host, bound, epoch))


@dataclass
class World:
    """A client's view of a router, and what is behind it."""

    router: RouterServer
    target: str
    channel: grpc.aio.Channel
    groups: list[FakeGroup] = field(default_factory=list)

    @property
    def stub(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def control(self) -> Any:
        return control_pb2_grpc.ControlServiceStub(self.channel)

    @property
    def health(self) -> Any:
        return health_pb2_grpc.HealthStub(self.channel)

    async def add_group(
        self,
        name: str = "left",
        epoch: int = 1,
        port: int = 0,
        models: tuple[ServedModel, ...] = (),
    ) -> FakeGroup:
        group = await start_group(name, epoch, port, models)
        self.groups.append(group)
        self.router.set_groups(tuple(group.address for group in self.groups))
        return group

    async def wait_status(self, service: str, status: int) -> None:
        async for response in self.health.Watch(health_pb2.HealthCheckRequest(service=service)):
            if response.status == status:
                return

    async def wait_ready(self) -> None:
        await self.wait_status(f"model:{MODEL}", health_pb2.HealthCheckResponse.SERVING)

    async def wait_down(self) -> None:
        await self.wait_status(f"model:{MODEL}", health_pb2.HealthCheckResponse.NOT_SERVING)

    async def status(self) -> control_pb2.StatusResponse:
        return await self.control.Status(control_pb2.StatusRequest())


@asynccontextmanager
async def running_world(num_groups: int = 1, **settings: Any) -> AsyncIterator[World]:
    settings = {"model_ids": (MODEL,), "link_secret": SECRET} | settings
    router = RouterServer(RouterSettings(**settings), load_tokenizer=FakeTokenizer.load)
    target = f"127.0.0.1:{await router.start()}"
    async with grpc.aio.insecure_channel(target) as channel:
        world = World(router, target, channel)
        try:
            for name in ("left", "right")[:num_groups]:
                await world.add_group(name)
            if num_groups:
                await world.wait_ready()
            yield world
        finally:
            await router.stop(0)
            for group in world.groups:
                await group.stop()


def spec(text: str = "hello", **fields: Any) -> pb.GenerationSpec:
    max_tokens = fields.pop("max_tokens", 8)
    message = pb.GenerationSpec(model=MODEL, text=text)
    message.MergeFrom(pb.GenerationSpec(**fields))
    if not message.stopping.HasField("max_tokens") and max_tokens:
        message.stopping.max_tokens = max_tokens
    return message


def stream(world: World, message: pb.GenerationSpec, **options: Any) -> Any:
    return world.stub.GenerateStream(pb.GenerateStreamRequest(spec=message), **options)


async def first_token(call: Any) -> pb.SequenceDelta:
    async for response in call:
        if response.WhichOneof("event") == "delta":
            return response.delta
    raise AssertionError("the stream ended without a token")


async def cancelled_id(group: FakeGroup) -> str:
    return await asyncio.to_thread(group.engine.cancelled.get, timeout=5)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """How a call fails, after whatever it streams."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value
