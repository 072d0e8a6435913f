"""Removes images of weights that nobody holds any more: one process for each folder of them.

Users of an image are killed more often than they close it, and it is gigabytes of memory. So the
first fetch starts this file (host_weights.py), and it looks into the folder now and then. What
nobody has held for ``linger_s`` it removes: a worker that is restarted sooner finds it there. It
imports nothing but the standard library: it starts in milliseconds, and weighs little.

Its keeper is who holds the folder itself locked. It ends when there are no images.
"""

import contextlib
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE, PART, LOCK = ".weights", ".part", ".lock"
LOOK_S, LEAST_LOOK_S = 1.0, 0.01


class ImageKeeper:
    """Keeps a folder, whose lock is ``fd``; see :func:`become_keeper`."""

    def __init__(self, folder: Path, fd: int, linger_s: float) -> None:
        self._folder = folder
        self._fd = fd
        self._linger_s = linger_s
        self._unheld_since_s: dict[tuple[str, int], float] = {}

    def run(self) -> None:
        """Look again and again until there is nothing to keep."""
        while True:
            while self.look(time.monotonic()):
                time.sleep(min(LOOK_S, max(LEAST_LOOK_S, self._linger_s / 4)))
            if not self.is_needed_again():
                return

    def look(self, now_s: float) -> bool:
        """Remove what nobody has held for long enough; whether there was anything."""
        since_s: dict[tuple[str, int], float] = {}
        is_any = False
        for path in kept_files(self._folder):
            with contextlib.suppress(OSError), opened(path) as fd:
                is_any = True
                if not try_lock(fd):
                    continue
                key = path.name, os.fstat(fd).st_ino
                since_s[key] = self._unheld_since_s.get(key, now_s)
                if now_s - since_s[key] >= self._linger_s:
                    remove_unused(path, fd)
        self._unheld_since_s = since_s
        return is_any

    def is_needed_again(self) -> bool:
        """Give the folder up, and take it again if somebody came who saw it held."""
        with contextlib.suppress(OSError):  # it isn't empty, or gone
            if self._folder.lstat().st_mode & stat.S_ISVTX:
                self._folder.rmdir()
        os.close(self._fd)
        if not self.look(time.monotonic()):
            return False
        with contextlib.suppress(FileNotFoundError):
            fd = become_keeper(self._folder)
            if fd is not None:
                self._fd = fd
                return True
        return False


def become_keeper(folder: Path) -> int | None:
    """The lock of a folder in which there is something, or None if somebody has it.

    Raises:
        OSError: It can't be locked.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        is_ours = try_lock(fd)
    except OSError:
        os.close(fd)
        raise
    if is_ours:
        return fd
    os.close(fd)
    return None


def kept_files(folder: Path) -> Iterator[Path]:
    """Images, and locks of what is being written."""
    with contextlib.suppress(FileNotFoundError):
        yield from (path for path in folder.iterdir() if path.suffix in (IMAGE, LOCK))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor for as long as it is used."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def sweep(folder: Path) -> None:
    """Remove all that nobody holds."""
    for path in kept_files(folder):
        with contextlib.suppress(OSError), opened(path) as fd:
            remove_unused(path, fd)


def remove_unused(path: Path, fd: int) -> None:
    """Remove an image or a lock, with what was written under it, if no other process holds it."""
    if not try_lock(fd) or not os.fstat(fd).st_nlink:
        return
    if path.suffix == LOCK:
        path.with_suffix(PART).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def try_lock(fd: int) -> bool:
    """Lock a file for this descriptor alone, if no other one has locked it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(fileno: str, folder: str, linger_s: str) -> None:
    """Leave the worker that started this, and keep its images."""
    if os.fork():
        os._exit(0)
    os.chdir("/")
    ImageKeeper(Path(folder), int(fileno), float(linger_s)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
