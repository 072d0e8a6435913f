"""Host memory outlives the worker that parked blocks in it, and ends when nobody wants it."""

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.block_tier import CopyFailed
from fabric.engine.device_blocks import CpuBlocks
from fabric.engine.host_tier import HostTier
from fabric.engine.keeper_process import make_private
from fabric.engine.kept_arena import KeptArena
from fabric.engine.memory_keeper import SOCKET_NAME, Wanted
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import Direction, Tier
from kernels.dispatch import select_backend
from tests.unit.mover_world import Moving, block_format, random_cache, start_moving

pytestmark = pytest.mark.dist

DEADLINE_S = 10.0
NUM_BYTES = 2**18
PAIRS = [(i, i) for i in range(20)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a short path: that of a Unix socket has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="fk-"))
    yield path
    wait_until(lambda: is_gone(path))
    shutil.rmtree(path)


def settings(folder: Path, linger_s: float = 30.0) -> ParkingSettings:
    return ParkingSettings(
        host_bytes=NUM_BYTES, keep=True, keeper_dir=folder, linger_s=linger_s, debug=True
    )


def wanted(num_bytes: int = NUM_BYTES, linger_s: float = 0.0, name: str = "a") -> Wanted:
    return Wanted(name, "", num_bytes, linger_s)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def is_gone(folder: Path) -> bool:
    """Whether no keeper serves the folder; the last thing that one does is to unlink."""
    return not (folder / SOCKET_NAME).exists()


def keepers(folder: Path) -> list[int]:
    """The processes that keep memory in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(folder) in (entry / "cmdline").read_text().split("\0"):
                found.append(int(entry.name))
    return found


def park_and_wait(folder: Path, ready: Connection) -> None:
    """A worker that parks PAIRS, says so, and then does nothing."""
    moving = start_moving(settings(folder), random_cache())
    assert not moving.run(1, Direction.OUT, Tier.HOST, PAIRS).error
    ready.send(os.getpid())
    signal.pause()


def kill_one_that_parked(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=park_and_wait, args=(folder, theirs), daemon=True)
    process.start()
    assert ours.poll(60.0)
    assert ours.recv() == process.pid
    process.kill()
    process.join()


def host_tier(moving: Moving) -> HostTier:
    tier = moving.tiers[Tier.HOST]
    assert isinstance(tier, HostTier)
    return tier


def test_what_a_killed_worker_had_parked_is_there_for_its_successor(folder: Path) -> None:
    kill_one_that_parked(folder)
    (keeper,) = keepers(folder)
    assert os.getsid(keeper) != os.getsid(0)
    successor = start_moving(settings(folder), torch.zeros_like(random_cache()))
    assert all(host_tier(successor).is_intact(slot) for _, slot in PAIRS)
    assert not host_tier(successor).is_intact(len(PAIRS))
    assert not successor.run(1, Direction.IN, Tier.HOST, PAIRS).error
    assert torch.equal(successor.cache[: len(PAIRS)], random_cache()[: len(PAIRS)])
    successor.close()
    wait_until(lambda: is_gone(folder))


def test_memory_waits_for_its_time_only(folder: Path) -> None:
    first = KeptArena(folder, wanted(linger_s=0.2))
    first.memory[:5] = b"hello"
    first.close(leaves_parked=True)
    second = KeptArena(folder, wanted(linger_s=0.2))
    assert (second.is_new, second.memory[:5]) == (False, b"hello")
    second.close(leaves_parked=True)
    wait_until(lambda: is_gone(folder))
    third = KeptArena(folder, wanted())
    assert (third.is_new, third.memory[:5]) == (True, bytes(5))
    third.close()


def test_memory_that_is_closed_is_free_at_once(folder: Path) -> None:
    KeptArena(folder, wanted(linger_s=3600.0)).close()
    wait_until(lambda: is_gone(folder))


def test_nobody_gets_memory_that_is_in_use_or_for_something_else(folder: Path) -> None:
    first, second = (KeptArena(folder, wanted(linger_s=1.0)) for _ in range(2))
    first.memory[0] = 1
    assert (second.is_new, second.memory[0]) == (True, 0)
    first.close(leaves_parked=True)
    others = [KeptArena(folder, w) for w in (wanted(2 * NUM_BYTES), wanted(name="b"))]
    assert all(other.is_new for other in others)
    assert not KeptArena(folder, wanted()).is_new
    for arena in (second, *others):
        arena.close()


def test_workers_that_start_at_once_share_one_keeper(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        arenas = list(pool.map(lambda _: KeptArena(folder, wanted()), range(8)))
    assert len(keepers(folder)) == 1
    for arena in arenas:
        arena.close()


def test_a_killed_keeper_takes_no_memory_from_workers_and_is_replaced(folder: Path) -> None:
    first = KeptArena(folder, wanted())
    (pid,) = keepers(folder)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not keepers(folder))
    first.memory[:5] = b"still"
    second = KeptArena(folder, wanted())
    assert second.is_new
    assert first.memory[:5] == b"still"
    for arena in (first, second):
        arena.close()


def test_a_keeper_that_dies_while_it_is_asked_is_replaced(folder: Path) -> None:
    make_private(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dying:
        dying.bind(str(folder / SOCKET_NAME))
        dying.listen()

        def die() -> None:
            connection, _ = dying.accept()
            dying.close()
            connection.close()

        thread = threading.Thread(target=die)
        thread.start()
        arena = KeptArena(folder, wanted())
        thread.join()
    assert arena.is_new
    arena.close()


def test_nonsense_closes_its_connection_and_nothing_else(folder: Path) -> None:
    arena = KeptArena(folder, wanted())
    for message in (b"?", b"[]", b"{}", wanted(2**80).encode(), wanted(0).encode()):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(folder / SOCKET_NAME))
            connection.send(message)
            assert connection.recv(100) == b""
    again = KeptArena(folder, wanted())
    again.close()
    arena.close()


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_may_use_is_refused_and_workers_do_without(
    folder: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder.chmod(mode)
    with pytest.raises(PermissionError, match="only this user"):
        KeptArena(folder, wanted())
    with caplog.at_level(logging.WARNING):
        moving = start_moving(settings(folder), random_cache())
    assert "will not outlive its worker" in caplog.text
    assert not moving.run(1, Direction.OUT, Tier.HOST, PAIRS).error
    moving.close()


def test_a_flipped_byte_is_seen_by_the_next_owner_and_by_a_load(folder: Path) -> None:
    arena = KeptArena(folder, wanted(linger_s=5.0))
    tier = HostTier(arena, block_format(), has_digests=True)
    device = CpuBlocks(random_cache(), select_backend("cpu", None, 1), BlockAddresses.dense())
    tier.store(device, PAIRS, None)
    at = arena.memory.find(random_cache()[7].numpy().tobytes())
    arena.memory[at] ^= 1
    tier.close(leaves_parked=True)
    left = KeptArena(folder, wanted())
    successor = HostTier(left, block_format(), is_checked=True)
    assert [slot for _, slot in PAIRS if not successor.is_intact(slot)] == [7]
    with pytest.raises(CopyFailed, match="slot 7 for block 7 is not what was stored"):
        successor.load(device, PAIRS, None)
    successor.close()
