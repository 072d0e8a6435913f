"""Opens the tiers that a worker's settings ask for."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from fabric.core.errors import ConfigError
from fabric.engine.block_tier import BlockTier
from fabric.engine.device_blocks import BlockFormat
from fabric.engine.disk_tier import DiskTier, disk_bytes_of
from fabric.engine.host_tier import HostTier, OwnArena, host_bytes_of
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import ParkingSpace, Tier


def open_tiers(settings: ParkingSettings, block: BlockFormat) -> dict[Tier, BlockTier]:
    """Reserve memory and disk for parked blocks.

    Raises:
        ConfigError: A tier has no room for one block, or the disk none for ``disk_bytes``.
    """
    tiers: dict[Tier, BlockTier] = {}
    _check_room("host_bytes", settings.host_bytes, host_bytes_of(1, block.block_bytes))
    _check_room("disk_bytes", settings.disk_bytes, disk_bytes_of(1, block.block_bytes))
    if settings.host_bytes:
        arena = OwnArena(settings.host_bytes)
        tiers[Tier.HOST] = HostTier(arena, block, is_checked=settings.debug)
    if settings.disk_bytes:
        tiers[Tier.DISK] = DiskTier(
            settings.disk_dir or Path(tempfile.gettempdir()),
            settings.disk_bytes,
            block,
            settings.num_copy_threads,
            is_checked=settings.debug,
        )
    return tiers


def space_of(tiers: Mapping[Tier, BlockTier], block: BlockFormat) -> ParkingSpace:
    """What the tiers hold."""
    num_slots = {tier: opened.num_slots for tier, opened in tiers.items()}
    return ParkingSpace(num_slots.get(Tier.HOST, 0), num_slots.get(Tier.DISK, 0), block.block_bytes)


def _check_room(name: str, num_bytes: int, slot_bytes: int) -> None:
    if 0 < num_bytes < slot_bytes:
        raise ConfigError(f"{name} is {num_bytes}; one block needs {slot_bytes}")
