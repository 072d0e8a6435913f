"""The Ray Serve deployment of a router: its own gRPC server in a Serve replica."""

import asyncio
import logging

from fabric.config import parse_config
from fabric.router.server import RouterServer
from fabric.serve.launch import Launch, find_controller
from fabric.telemetry.logs import setup_logging

logger = logging.getLogger(__name__)

RETRY_PERIOD_S = 0.5


class RouterReplica:
    """Hosts a router, and tells it where the device groups are."""

    async def __init__(self, launch: Launch) -> None:  # type: ignore[misc]
        config = parse_config(launch.config, "the launched configuration")
        setup_logging(config.log_level.upper())
        self._controller = find_controller(launch)
        self._router = RouterServer(config.router_settings(launch.link_secret))
        port = await self._router.start()
        self._address = f"{config.router.host}:{port}"
        await self._controller.announce_router.remote(self._address)
        self._watching = asyncio.create_task(self._watch())
        logger.info("router serves at %s", self._address)

    def check_health(self) -> None:
        """Tell Serve to replace this replica if it no longer follows the directory."""
        if self._watching.done():
            raise RuntimeError("the router no longer follows the directory")

    async def _watch(self) -> None:
        version = -1
        while True:
            try:
                directory = await self._controller.watch.remote(version)
            except Exception:
                # The controller restarts; the groups known so far go on serving.
                logger.warning("the controller does not answer; trying again", exc_info=True)
                await asyncio.sleep(RETRY_PERIOD_S)
                continue
            if directory.version != version:
                version = directory.version
                self._router.set_groups(directory.groups)
                await self._controller.announce_router.remote(self._address)
