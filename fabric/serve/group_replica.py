"""The Ray Serve deployment of one device group."""

import asyncio
import contextlib
import logging
import os
from typing import Any

import ray

from fabric.config import parse_config
from fabric.engine.device_group import DeviceGroup
from fabric.engine.link_server import LinkSettings
from fabric.router.catalog import GroupAddress
from fabric.serve.directory import GroupReport, LoadingStage
from fabric.serve.launch import Launch, find_controller, group_part, reported_failure
from fabric.serve.loopback import keep_serve_on_loopback
from fabric.serve.shard_actors import RayShardHost
from fabric.telemetry.logs import setup_logging

logger = logging.getLogger(__name__)

ANNOUNCE_PERIOD_S = 1.0
# A group that is to leave is waited for.
LEAVE_PERIOD_S = 0.1
WATCH_PERIOD_S = 0.1


class ReportedProgress:
    """Tells the controller how far loading is, a few times for each stage."""

    def __init__(self, controller: Any, group: str) -> None:
        self._controller = controller
        self._group = group
        self._last = LoadingStage("")

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Report a stage, if it changed by a twentieth or more."""
        is_news = stage != self._last.stage or done == total
        if is_news or done - self._last.done >= (total or 0) / 20:
            self._last = LoadingStage(stage, done, total)
            self._controller.note_loading.remote(self._group, self._last)


class GroupReplica:
    """Hosts one device group in a Serve replica, and keeps it announced to the controller.

    The launch's configuration has this group alone; it runs under a name that may differ from
    the one that it has there.
    """

    async def __init__(self, launch: Launch, group_name: str) -> None:  # type: ignore[misc]
        config = parse_config(launch.config, "the launched configuration")
        setup_logging(config.log_level.upper())
        keep_serve_on_loopback()
        self._controller = find_controller(launch)
        (section,) = config.groups
        self._config = launch.config
        self._num_devices = section.parallel.pipeline * section.parallel.tensor
        self._is_draining = False
        epoch = await self._controller.next_epoch.remote()
        link = LinkSettings(
            group=group_name,
            epoch=epoch,
            # Ray's address of this node: loopback for a local instance of ours.
            host=config.link_host or ray.util.get_node_ip_address(),
            secret=launch.link_secret,
        )
        progress = ReportedProgress(self._controller, group_name)
        progress.update("starting", 0, None)
        settings = config.engine_settings(section)
        is_gang = settings.parallel.num_devices > 1
        shard_host = RayShardHost(section, config.log_level.upper()) if is_gang else None
        async with reported_failure(self._controller, group_part(group_name)):
            self._group = await DeviceGroup.start(settings, link, progress, shard_host)
        host, port = self._group.address
        self._address = GroupAddress(group_name, host, port, epoch)
        await self._tell()
        self._announcing = asyncio.create_task(self._announce())
        self._watching = asyncio.create_task(self._watch())
        logger.info("group %s serves at %s:%d, epoch %d", group_name, host, port, epoch)

    def check_health(self) -> None:
        """Tell Serve to replace this replica if its engine has failed."""
        if self._group.failure:
            raise RuntimeError(self._group.failure)

    async def _watch(self) -> None:
        """Leave at once when the engine has failed: Serve replaces a dead replica in a second.

        A failed health check would take several periods.
        """
        while self._group.failure is None:
            await asyncio.sleep(WATCH_PERIOD_S)
        logger.error("group %s ends: %s", self._address.name, self._group.failure)
        await asyncio.sleep(WATCH_PERIOD_S)  # for the last frames to routers
        os._exit(1)

    async def _announce(self) -> None:
        while True:
            await asyncio.sleep(LEAVE_PERIOD_S if self._is_draining else ANNOUNCE_PERIOD_S)
            # While the controller restarts, calls fail; the next ones tell it everything.
            with contextlib.suppress(Exception):
                await self._tell()

    async def _tell(self) -> None:
        """Tell the controller where this group is, and drain if it says that others serve now."""
        weights = {
            model.model: model.weight_bytes * self._num_devices
            for model in self._group.report().models
        }
        report = GroupReport(
            self._address, self._config, self._group.num_streams, self._is_draining, weights
        )
        is_retired: bool = await self._controller.announce_group.remote(report)
        if is_retired and not self._is_draining:
            logger.info("group %s drains: others have its place", self._address.name)
            self._group.drain()
            self._is_draining = True
