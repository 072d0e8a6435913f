"""What a disk does to parked blocks is an error of the transfer, and never ends the worker."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fabric.core.errors import ConfigError
from fabric.engine.disk_tier import DiskTier, disk_bytes_of
from fabric.engine.settings import ParkingSettings
from fabric.engine.tiers import open_tiers
from fabric.kv.transfer import Direction, Tier
from tests.unit.mover_world import Moving, block_format, random_cache, start_moving

OUT, IN, DISK = Direction.OUT, Direction.IN, Tier.DISK
PAIRS = [(3, 1), (4, 2), (5, 3), (9, 6)]
MEBI = 2**20


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Moving]:
    """A mover that has parked PAIRS on disk."""
    settings = ParkingSettings(disk_bytes=MEBI, disk_dir=tmp_path)
    started = start_moving(settings, random_cache())
    assert not started.run(1, OUT, DISK, PAIRS).error
    yield started
    started.close()


def file_of(moving: Moving) -> int:
    tier = moving.tiers[DISK]
    assert isinstance(tier, DiskTier)
    return tier.fileno


def replace_file(moving: Moving, path: str, flags: int) -> None:
    other = os.open(path, flags)
    os.dup2(other, file_of(moving))
    os.close(other)


def flip_a_byte(moving: Moving, offset: int) -> None:
    with open(f"/proc/self/fd/{file_of(moving)}", "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def load(moving: Moving) -> str:
    """Load PAIRS back, and return the error."""
    return moving.run(2, IN, DISK, PAIRS).error


def test_a_flipped_byte_is_an_error_that_names_its_slot(moving: Moving) -> None:
    slot_bytes = disk_bytes_of(1, block_format().block_bytes)
    flip_a_byte(moving, 2 * slot_bytes + 17)
    assert load(moving) == "disk: slot 2 for block 4 is not what was stored"
    # The other slots are still good, and so is the whole tier.
    assert not moving.run(3, IN, DISK, [(9, 6)]).error
    assert not moving.run(4, OUT, DISK, PAIRS).error
    assert not load(moving)


def test_a_file_that_ends_early_is_an_error(moving: Moving) -> None:
    slot_bytes = disk_bytes_of(1, block_format().block_bytes)
    os.ftruncate(file_of(moving), 3 * slot_bytes)
    assert load(moving) == f"disk: the file ends {slot_bytes} bytes early in slot 1"


def test_a_failed_read_is_an_error(moving: Moving, tmp_path: Path) -> None:
    replace_file(moving, str(tmp_path), os.O_RDONLY)
    assert load(moving) == "disk: slot 1 can't be read: Is a directory"


def test_a_failed_write_is_an_error(moving: Moving) -> None:
    replace_file(moving, "/dev/full", os.O_RDWR)
    result = moving.run(2, OUT, DISK, PAIRS)
    assert result.error == "disk: slot 1 can't be written: No space left on device"
    assert result.num_bytes == 0


def test_a_slot_that_was_never_written_is_an_error(moving: Moving) -> None:
    assert moving.run(2, IN, DISK, [(0, 0)]).error


def test_nothing_is_copied_to_the_device_when_a_slot_is_bad(moving: Moving) -> None:
    flip_a_byte(moving, disk_bytes_of(6, block_format().block_bytes))
    before = moving.cache.clone()
    assert load(moving)
    assert torch.equal(moving.cache, before)


def test_the_file_has_no_name(moving: Moving, tmp_path: Path) -> None:
    assert not list(tmp_path.iterdir())
    assert os.fstat(file_of(moving)).st_blocks * 512 >= MEBI


def test_the_page_cache_is_used_where_there_is_no_direct_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("fabric.engine.disk_tier.fcntl.fcntl", refuse)
    settings = ParkingSettings(disk_bytes=MEBI, disk_dir=tmp_path, debug=True)
    moving = start_moving(settings, random_cache())
    assert not moving.run(1, OUT, DISK, PAIRS).error
    moving.cache.zero_()
    assert not load(moving)
    blocks = [block for block, _ in PAIRS]
    assert torch.equal(moving.cache[blocks], random_cache()[blocks])
    moving.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"disk_bytes": 2**60}, "disk_bytes: 1152921504606846976 bytes can't be reserved in /"),
        ({"disk_dir": Path("/nowhere/at/all")}, "/nowhere/at/all: No such file or directory"),
        ({"disk_bytes": 100}, "disk_bytes is 100; one block needs 4096"),
        ({"host_bytes": 100}, "host_bytes is 100; one block needs 5632"),
    ],
)
def test_what_cannot_be_reserved_is_refused_at_the_start(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    settings = ParkingSettings(disk_bytes=MEBI, disk_dir=tmp_path)
    changed: Callable[..., ParkingSettings] = replace
    with pytest.raises(ConfigError, match=message):
        open_tiers(changed(settings, **change), block_format())
