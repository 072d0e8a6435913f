"""Opens the tiers that a worker's settings ask for."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fabric.core.errors import ConfigError
from fabric.engine.block_tier import BlockTier
from fabric.engine.device_blocks import BlockFormat
from fabric.engine.disk_tier import DiskTier, disk_bytes_of
from fabric.engine.host_tier import Arena, HostTier, OwnArena, host_bytes_of
from fabric.engine.kept_arena import KeptArena
from fabric.engine.memory_keeper import Wanted
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import ParkingSpace, Tier

logger = logging.getLogger(__name__)


def open_tiers(
    settings: ParkingSettings, block: BlockFormat, owner: str = ""
) -> dict[Tier, BlockTier]:
    """Reserve memory and disk for parked blocks.

    Args:
        settings: How much, and where.
        block: What is parked.
        owner: Who parks; memory that is kept goes to the next of the same name and block.

    Raises:
        ConfigError: A tier has no room for one block, or the disk none for ``disk_bytes``.
    """
    tiers: dict[Tier, BlockTier] = {}
    _check_room("host_bytes", settings.host_bytes, host_bytes_of(1, block.block_bytes))
    _check_room("disk_bytes", settings.disk_bytes, disk_bytes_of(1, block.block_bytes))
    if settings.host_bytes:
        arena = _open_arena(settings, block, owner)
        tiers[Tier.HOST] = HostTier(
            arena, block, has_digests=settings.keep, is_checked=settings.debug
        )
    if settings.disk_bytes:
        tiers[Tier.DISK] = DiskTier(
            settings.disk_dir or Path(tempfile.gettempdir()),
            settings.disk_bytes,
            block,
            settings.num_copy_threads,
            is_checked=settings.debug,
        )
    return tiers


def split_parking(settings: ParkingSettings, num_models: int) -> ParkingSettings:
    """The share that each of a worker's models has of the memory and the disk to park in."""
    return replace(
        settings,
        host_bytes=settings.host_bytes // num_models,
        disk_bytes=settings.disk_bytes // num_models,
    )


def space_of(tiers: Mapping[Tier, BlockTier], block: BlockFormat) -> ParkingSpace:
    """What the tiers hold."""
    num_slots = {tier: opened.num_slots for tier, opened in tiers.items()}
    return ParkingSpace(num_slots.get(Tier.HOST, 0), num_slots.get(Tier.DISK, 0), block.block_bytes)


def _open_arena(settings: ParkingSettings, block: BlockFormat, owner: str) -> Arena:
    if not settings.keep:
        return OwnArena(settings.host_bytes)
    folder = settings.keeper_dir or Path(tempfile.gettempdir()) / f"llm-fabric-{os.getuid()}"
    fingerprint = hashlib.sha256(f"{owner} {block}".encode()).hexdigest()
    wanted = Wanted(owner[:100], fingerprint, settings.host_bytes, settings.linger_s)
    try:
        arena = KeptArena(folder, wanted)
    except OSError as error:
        logger.warning("what is parked in host memory will not outlive its worker: %s", error)
        return OwnArena(settings.host_bytes)
    if not arena.is_new:
        logger.info("%s has the host memory that a worker before it left", owner)
    return arena


def _check_room(name: str, num_bytes: int, slot_bytes: int) -> None:
    if 0 < num_bytes < slot_bytes:
        raise ConfigError(f"{name} is {num_bytes}; one block needs {slot_bytes}")
