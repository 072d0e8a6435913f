"""A device group's process: an engine on its thread, and the link that routers connect to."""

import asyncio
from typing import Self

from fabric.core.clock import MonotonicClock
from fabric.core.request import LoadReport
from fabric.engine.build import build_engine
from fabric.engine.engine_loop import EngineLoop
from fabric.engine.link_server import LinkServer, LinkSettings
from fabric.engine.settings import EngineSettings
from fabric.engine.shard_host import ShardHost, start_gang
from fabric.models.progress import Progress


class DeviceGroup:
    """An engine behind a link; made by :meth:`start`."""

    def __init__(self, loop: EngineLoop, link: LinkServer, address: tuple[str, int]) -> None:
        self._loop = loop
        self._link = link
        self.address = address

    @classmethod
    async def start(
        cls,
        settings: EngineSettings,
        link_settings: LinkSettings,
        progress: Progress | None = None,
        shard_host: ShardHost | None = None,
    ) -> Self:
        """Load the models off the event loop, then listen and serve.

        Args:
            settings: The models, how they are cut and scheduled.
            link_settings: Who the group is, and where it listens.
            progress: Hears how far loading is.
            shard_host: Where the workers of a group with several devices run.

        Raises:
            SourceError: The weights can't be fetched.
            CheckpointError: They don't fit the model.
            ConfigError: The memory doesn't hold the models.
            GroupError: A shard worker could not start.
        """
        clock = MonotonicClock()
        gang = None
        if shard_host is not None:
            gang = await asyncio.to_thread(
                start_gang, settings, shard_host, link_settings.epoch, link_settings.host
            )
        built = await asyncio.to_thread(build_engine, settings, progress, clock, gang)
        patience_s = settings.scheduler.transfer_timeout_s
        served = tuple(model.served for model in built.models)
        loop = EngineLoop(built.engine, served, clock, patience_s)
        link = LinkServer(loop, link_settings)
        address = await link.start()
        loop.start(link.publish)
        return cls(loop, link, address)

    @property
    def failure(self) -> str | None:
        """What ended the engine, if it failed."""
        return self._loop.failure

    @property
    def num_streams(self) -> int:
        """Requests in flight, from all routers."""
        return self._link.num_streams

    def report(self) -> LoadReport:
        """The load now."""
        return self._loop.report()

    def drain(self) -> None:
        """Refuse new requests; those in flight go on."""
        self._link.drain()

    async def stop(self) -> None:
        """End the engine and the link; unfinished requests end with Unavailable."""
        await asyncio.to_thread(self._loop.stop)
        await self._link.stop()
