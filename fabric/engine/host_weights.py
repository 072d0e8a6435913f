"""Images of packed weights in host memory, written once and read by all processes of a host.

An image is one file. Locks say what it is, and the kernel takes them from a process that dies:

* ``NAME.weights`` is whole. Its users hold it shared; the last one removes it.
* ``NAME.part`` is being written by whoever holds ``NAME.lock``, while others wait for that.

What nobody holds was left by processes that were killed. It is removed after some time by a
process that each folder has (image_keeper.py), unless somebody comes to use it.

Source: ServerlessLLM (Fu et al., OSDI 2024), section 4: a pool of checkpoints in host memory.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fabric.core.errors import SourceError
from fabric.engine import image_keeper
from fabric.engine.image_keeper import (
    IMAGE,
    LOCK,
    PART,
    become_keeper,
    remove_unused,
    sweep,
    try_lock,
)
from fabric.engine.keeper_process import make_private, start_keeper

SHARED_MEMORY = Path("/dev/shm")
RETRY_S = 0.01

logger = logging.getLogger(__name__)

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
        remove_unused(self._path, self._fd)
        os.close(self._fd)


class HostStore:
    """Images in the first of some folders that can hold them; folders are this user's alone.

    An image that its last user closes is removed at once. One whose users were killed lives on
    for ``linger_s``, or for as long as another process has said that came to the folder before.
    """

    def __init__(self, folders: Sequence[Path], linger_s: float = 30.0) -> None:
        self._folders = folders
        self._linger_s = linger_s
        self._has_warned = False

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
                return self._fetch(folder, name, num_bytes, write, keep_on)
            except OSError as error:
                problems.append(f"{folder}: {error.strerror or error}")
        raise SourceError(f"{num_bytes} bytes of weights can't be kept: {'; '.join(problems)}")

    def _fetch(
        self,
        folder: Path,
        name: str,
        num_bytes: int,
        write: Callable[[WriteAt], None],
        keep_on: Callable[[], None],
    ) -> HostImage:
        def write_kept(write_at: WriteAt) -> None:
            # Before it is written, for who is killed meanwhile leaves gigabytes too.
            self._have_kept(folder)
            write(write_at)

        while True:
            make_private(folder)
            try:
                image = _fetch(folder, name, num_bytes, write_kept, keep_on)
            except FileNotFoundError:
                if folder.exists():
                    raise
                continue  # its keeper found it empty
            if not image.was_written:
                self._have_kept(folder)
            return image

    def _have_kept(self, folder: Path) -> None:
        """See to it that the folder has a keeper, soon."""
        try:
            fd = become_keeper(folder)
        except OSError as error:
            self._do_without_keeper(folder, error)
            return
        if fd is not None:
            threading.Thread(
                target=self._start_keeper, args=(folder, fd), name="image-keeper", daemon=True
            ).start()

    def _start_keeper(self, folder: Path, fd: int) -> None:
        try:
            arguments = [str(folder.absolute()), str(self._linger_s)]
            start_keeper(image_keeper.__file__, arguments, fd)
        except OSError as error:
            self._do_without_keeper(folder, error)
        finally:
            os.close(fd)

    def _do_without_keeper(self, folder: Path, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("weights that killed processes leave stay in %s: %s", folder, error)
        sweep(folder)


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
    # Whoever holds it otherwise looks whether it is used, or is about to remove it.
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
        _reserve(path.parent, fd, num_bytes)
        write(lambda offset, data: _write_at(fd, offset, data))
        os.fsync(fd)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        os.close(fd)
        raise
    return HostImage(path, fd, num_bytes, was_written=True)


def _reserve(folder: Path, fd: int, num_bytes: int) -> None:
    """Take the room before anything is read, if need be that of what lingers, or fail."""
    if _num_free(fd) < num_bytes:
        sweep(folder)
    num_free = _num_free(fd)
    if num_free < num_bytes:
        raise OSError(f"no room; {num_free} bytes are free")
    os.posix_fallocate(fd, 0, num_bytes)


def _num_free(fd: int) -> int:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize


def _write_at(fd: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


@contextmanager
def _lock(path: Path, keep_on: Callable[[], None]) -> Iterator[bool]:
    """Hold a lock file, and remove it at the end; whether it is not one that was removed."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not try_lock(fd):
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
