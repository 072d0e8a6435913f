"""Opens the tiers that a worker's settings ask for."""

from collections.abc import Mapping

from fabric.engine.block_tier import BlockTier
from fabric.engine.device_blocks import BlockFormat
from fabric.engine.host_tier import HostTier, OwnArena
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import ParkingSpace, Tier


def open_tiers(settings: ParkingSettings, block: BlockFormat) -> dict[Tier, BlockTier]:
    """Reserve memory and disk for parked blocks.

    Raises:
        ConfigError: The disk has no room for ``disk_bytes``.
    """
    tiers: dict[Tier, BlockTier] = {}
    if settings.host_bytes:
        arena = OwnArena(settings.host_bytes)
        tiers[Tier.HOST] = HostTier(arena, block, is_checked=settings.debug)
    return tiers


def space_of(tiers: Mapping[Tier, BlockTier], block: BlockFormat) -> ParkingSpace:
    """What the tiers hold."""
    num_slots = {tier: opened.num_slots for tier, opened in tiers.items()}
    return ParkingSpace(num_slots.get(Tier.HOST, 0), num_slots.get(Tier.DISK, 0), block.block_bytes)
