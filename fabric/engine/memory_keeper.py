"""Keeps workers' host memory while workers come and go: one process for each user of a host.

The first worker that needs it starts this file with a socket that listens (kept_arena.py), and it
ends when it keeps nothing. It imports nothing but the standard library: it starts in
milliseconds, and weighs little. Its memory has no name anywhere: when keeper and workers are all
killed, the kernel frees it.

A client sends what it wants (:class:`Wanted`), and gets a memory file with a :class:`Given`. The
memory is the client's until its connection is lost. Then it waits ``linger_s`` for somebody who
wants the same; if the client has said RELEASE, it is freed at once.
"""

import contextlib
import fcntl
import json
import os
import selectors
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SOCKET_NAME = "keeper"
LOCK_NAME = "keeper.lock"
RELEASE = b"release"
MAX_MESSAGE_BYTES = 4096
RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """Memory for ``name``; ``fingerprint`` says what its bytes mean to it."""

    name: str
    fingerprint: str
    num_bytes: int
    linger_s: float

    def encode(self) -> bytes:
        """The message."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Wanted":
        """The message's content.

        Raises:
            ValueError: It is none.
        """
        try:
            fields = json.loads(data)
            wanted = cls(**fields)
            if wanted.num_bytes < 1 or wanted.linger_s < 0:
                raise ValueError(f"no memory can be kept for {wanted}")
        except TypeError as error:
            raise ValueError(str(error)) from error
        return wanted

    def fits(self, other: "Wanted") -> bool:
        """Whether memory made for ``other`` will do."""
        mine = (self.name, self.fingerprint, self.num_bytes)
        return mine == (other.name, other.fingerprint, other.num_bytes)


@dataclass(slots=True)
class _Kept:
    """One piece of memory; ``expires_at_s`` is None while a client has it."""

    wanted: Wanted
    fd: int
    expires_at_s: float | None = None


class Keeper:
    """Serves clients one message at a time; ``listener`` is in ``folder``."""

    def __init__(self, listener: socket.socket, folder: Path) -> None:
        self._listener = listener
        self._folder = folder
        self._kept: list[_Kept] = []
        self._clients: dict[socket.socket, _Kept | None] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until nothing is kept and nobody is connected."""
        while not self._has_retired():
            for key, _ in self._selector.select(self._timeout_s()):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
            self._expire()

    def _accept(self) -> bool:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return False
        if peer_uid(client) != os.getuid():
            client.close()
            return True
        self._clients[client] = None
        self._selector.register(client, selectors.EVENT_READ)
        return True

    def _hear(self, client: socket.socket) -> None:
        try:
            message = client.recv(MAX_MESSAGE_BYTES)
            if message == RELEASE:
                self._release(client)
            elif message:
                self._give(client, Wanted.decode(message))
            else:
                self._forget(client)
        except (OSError, OverflowError, TypeError, ValueError):
            self._forget(client)

    def _give(self, client: socket.socket, wanted: Wanted) -> None:
        if self._clients[client] is not None:
            raise ValueError("a client has one piece of memory")
        waiting = [k for k in self._kept if k.expires_at_s is not None and wanted.fits(k.wanted)]
        kept = waiting[0] if waiting else self._new(wanted)
        kept.wanted, kept.expires_at_s = wanted, None
        self._clients[client] = kept
        socket.send_fds(client, [json.dumps({"is_new": not waiting}).encode()], [kept.fd])

    def _new(self, wanted: Wanted) -> _Kept:
        fd = os.memfd_create("fabric-kv")
        try:
            os.ftruncate(fd, wanted.num_bytes)
        except (OSError, OverflowError, TypeError):
            os.close(fd)
            raise
        self._kept.append(_Kept(wanted, fd))
        return self._kept[-1]

    def _release(self, client: socket.socket) -> None:
        if kept := self._clients[client]:
            self._clients[client] = None
            self._free(kept)

    def _forget(self, client: socket.socket) -> None:
        if kept := self._clients.pop(client):
            kept.expires_at_s = time.monotonic() + kept.wanted.linger_s
        self._selector.unregister(client)
        client.close()

    def _expire(self) -> None:
        now_s = time.monotonic()
        for kept in list(self._kept):
            if kept.expires_at_s is not None and kept.expires_at_s <= now_s:
                self._free(kept)

    def _free(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        os.close(kept.fd)

    def _timeout_s(self) -> float | None:
        ends_s = [k.expires_at_s for k in self._kept if k.expires_at_s is not None]
        if ends_s:
            return max(0.0, min(ends_s) - time.monotonic())
        return None if self._clients else RETRY_S

    def _has_retired(self) -> bool:
        """End if nobody needs the keeper; clients that come hold the lock until they are served."""
        if self._kept or self._clients:
            return False
        with open(self._folder / LOCK_NAME, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self._accept():
                return False
            with contextlib.suppress(FileNotFoundError):
                (self._folder / SOCKET_NAME).unlink()
        return True


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


def main(fileno: str, folder: str) -> None:
    """Leave the worker that started this, and keep memory."""
    if os.fork():
        os._exit(0)
    os.chdir("/")
    Keeper(socket.socket(fileno=int(fileno)), Path(folder)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
