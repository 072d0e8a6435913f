"""The Ray Serve deployment of a router: its own gRPC server in a Serve replica."""

import asyncio
import contextlib
import logging
import uuid

from fabric.config import parse_config
from fabric.router.server import RouterServer
from fabric.serve.directory import Directory, RouterAddress, RouterReport
from fabric.serve.launch import ROUTER, Launch, find_controller, reported_failure
from fabric.serve.loopback import keep_serve_on_loopback
from fabric.serve.planner import ControllerPlanner
from fabric.serve.waiting import waiting_groups
from fabric.telemetry.logs import setup_logging

logger = logging.getLogger(__name__)

RETRY_PERIOD_S = 0.5
READINESS_PERIOD_S = 0.1
EXPLAIN_PERIOD_S = 1.0
ANNOUNCE_PERIOD_S = 1.0


class RouterReplica:
    """Hosts a router, and tells it where the device groups are.

    Serve hands over handles of the groups that are deployed with it; requests take our own links.
    """

    async def __init__(self, launch: Launch, *_groups: object) -> None:  # type: ignore[misc]
        config = parse_config(launch.config, "the launched configuration")
        setup_logging(config.log_level.upper())
        keep_serve_on_loopback()
        self._controller = find_controller(launch)
        async with reported_failure(self._controller, ROUTER):
            self._router = RouterServer(
                config.router_settings(launch.link_secret),
                planner=ControllerPlanner(self._controller),
            )
            port = await self._router.start()
        self._directory = Directory(-1)
        self._router_id = uuid.uuid4().hex
        self._address = f"{config.router.host}:{port}"
        await self._announce()
        self._watching = asyncio.create_task(self._watch())
        self._reporting = asyncio.create_task(self._report_readiness())
        self._explaining = asyncio.create_task(self._explain())
        logger.info("router serves at %s", self._address)
        if self._router.metrics_port is not None:
            logger.info("metrics on port %d", self._router.metrics_port)

    def check_health(self) -> None:
        """Tell Serve to replace this replica if it no longer follows the directory."""
        if self._watching.done() or self._reporting.done() or self._explaining.done():
            raise RuntimeError("the router no longer follows the directory")

    async def _watch(self) -> None:
        while True:
            try:
                directory: Directory = await self._controller.watch.remote(self._directory.version)
                if directory.version != self._directory.version:
                    self._router.set_groups(directory.groups)
                    if directory.models is not None:
                        self._router.set_models(directory.models)
                    self._directory = directory
                    await self._announce()
            except Exception:
                # The controller restarts; the groups known so far go on serving.
                logger.warning("the controller does not answer; trying again", exc_info=True)
                await asyncio.sleep(RETRY_PERIOD_S)

    async def _report_readiness(self) -> None:
        told, told_s = None, 0.0
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(READINESS_PERIOD_S)
            state = (self._router.is_ready, self._router.ready_groups)
            if state != told or now() - told_s >= ANNOUNCE_PERIOD_S:
                # While the controller restarts, calls fail; the next one tells it.
                with contextlib.suppress(Exception):
                    await self._announce()
                    told, told_s = state, now()

    async def _explain(self) -> None:
        """Keep the router told of why groups aren't there."""
        while True:
            await asyncio.sleep(EXPLAIN_PERIOD_S)
            if not self._router.is_ready:
                # While the controller restarts, calls fail; the next one answers.
                with contextlib.suppress(Exception):
                    directory = await self._controller.directory.remote()
                    waiting = await asyncio.to_thread(waiting_groups)
                    self._router.explain({**directory.reasons(), **waiting})

    async def _announce(self) -> None:
        report = RouterReport(
            self._router_id,
            RouterAddress(self._address, self._router.is_ready),
            self._directory.version,
            self._directory.plan,
            self._router.ready_groups,
        )
        await self._controller.announce_router.remote(report)
