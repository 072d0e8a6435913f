"""Images of packed weights in host memory, written once and read by all processes of a host.

An image is one file. Locks say what it is, and the kernel takes them from a process that dies:

* ``NAME.weights`` is whole. Its users hold it shared; the last one removes it.
* ``NAME.part`` is being written by whoever holds ``NAME.lock``, while others wait for that.

What nobody holds was left by processes that were killed; the next fetch removes it.

Source: ServerlessLLM (Fu et al., OSDI 2024), section 4: a pool of checkpoints in host memory.
"""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fabric.core.errors import SourceError

SHARED_MEMORY = Path("/dev/shm")
IMAGE, PART, LOCK = ".weights", ".part", ".lock"
RETRY_S = 0.01

WriteAt = Callable[[int, memoryview], None]


class HostImage:
    """A whole image in use; ``was_written`` if this process has made it."""

    def __init__(self, path: Path, fd: int, num_bytes: int, was_written: bool) -> None:
        """Take over ``fd``, whose shared lock is held."""
        self.num_bytes = num_bytes
        self.was_written = was_written
        self._path = path
        self._fd = fd

    def read(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with what is at ``offset``, other threads running meanwhile.

        Raises:
            SourceError: The image is shorter than it was, or can't be read.
        """
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._fd, [target[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"{self._path} can't be read: {error}") from error
            if count == 0:
                raise SourceError(f"{self._path} is truncated at {offset + done} bytes")
            done += count

    def check(self) -> None:
        """Look whether all of it is there.

        Raises:
            SourceError: It is truncated.
        """
        found = os.fstat(self._fd).st_size
        if found != self.num_bytes:
            raise SourceError(f"{self._path} has {found} bytes instead of {self.num_bytes}")

    def close(self) -> None:
        """Let go of it, and remove it if nobody else uses it."""
        _remove_unused(self._path, self._fd)
        os.close(self._fd)


class HostStore:
    """Images in the first of some folders that can hold them; folders are this user's alone."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def fetch(
        self,
        name: str,
        num_bytes: int,
        write: Callable[[WriteAt], None],
        keep_on: Callable[[], None],
    ) -> HostImage:
        """Use an image, or write it if nobody has; of many who want it, one writes.

        Args:
            name: Names the image's content.
            num_bytes: Its length.
            write: Calls its argument with offsets and bytes until the image is whole.
            keep_on: Called now and then while another process writes; raises to give up.

        Raises:
            SourceError: No folder can be used, or has room.
        """
        problems = []
        for folder in self._folders:
            try:
                _make_private(folder)
                _sweep(folder, except_name=name)
                return _fetch(folder, name, num_bytes, write, keep_on)
            except OSError as error:
                problems.append(f"{folder}: {error.strerror or error}")
        raise SourceError(f"{num_bytes} bytes of weights can't be kept: {'; '.join(problems)}")


def default_folders(cache_dir: Path) -> tuple[Path, ...]:
    """Where images go unless somebody says so: into shared memory, else below the cache."""
    return SHARED_MEMORY / f"llm-fabric-{os.getuid()}", cache_dir / "host-weights"


def _fetch(
    folder: Path,
    name: str,
    num_bytes: int,
    write: Callable[[WriteAt], None],
    keep_on: Callable[[], None],
) -> HostImage:
    path = folder / (name + IMAGE)
    while True:
        image = _use(path, num_bytes)
        if image is not None:
            return image
        with _lock(folder / (name + LOCK), keep_on) as is_current:
            # Whoever had the lock before may have written it, and has removed the lock.
            if is_current and not path.exists():
                return _write(path, num_bytes, write)


def _use(path: Path, num_bytes: int) -> HostImage | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    # Only somebody who is about to remove it holds it otherwise, and not for long.
    fcntl.flock(fd, fcntl.LOCK_SH)
    found = os.fstat(fd)
    if found.st_nlink and found.st_size == num_bytes:
        return HostImage(path, fd, num_bytes, was_written=False)
    if found.st_nlink:
        path.unlink(missing_ok=True)
    os.close(fd)
    return None


def _write(path: Path, num_bytes: int, write: Callable[[WriteAt], None]) -> HostImage:
    part = path.with_suffix(PART)
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # From now on, so that nobody finds it whole and unused.
        fcntl.flock(fd, fcntl.LOCK_SH)
        _reserve(fd, num_bytes)
        write(lambda offset, data: _write_at(fd, offset, data))
        os.fsync(fd)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        os.close(fd)
        raise
    return HostImage(path, fd, num_bytes, was_written=True)


def _reserve(fd: int, num_bytes: int) -> None:
    """Take the room before anything is read, or fail."""
    found = os.fstatvfs(fd)
    num_free = found.f_bavail * found.f_frsize
    if num_free < num_bytes:
        raise OSError(f"no room; {num_free} bytes are free")
    os.posix_fallocate(fd, 0, num_bytes)


def _write_at(fd: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


@contextmanager
def _lock(path: Path, keep_on: Callable[[], None]) -> Iterator[bool]:
    """Hold a lock file, and remove it at the end; whether it is not one that was removed."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_lock(fd):
            keep_on()
            time.sleep(RETRY_S)
        is_current = os.fstat(fd).st_nlink > 0
        try:
            yield is_current
        finally:
            if is_current:
                path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _sweep(folder: Path, except_name: str) -> None:
    """Remove what killed processes have left."""
    for path in folder.iterdir():
        if path.suffix not in (IMAGE, LOCK) or path.name == except_name + IMAGE:
            continue
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                _remove_unused(path, fd)
            finally:
                os.close(fd)


def _remove_unused(path: Path, fd: int) -> None:
    """Remove an image or a lock, with what was written under it, if no other process holds it."""
    if not _try_lock(fd) or not os.fstat(fd).st_nlink:
        return
    if path.suffix == LOCK:
        path.with_suffix(PART).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can use")
