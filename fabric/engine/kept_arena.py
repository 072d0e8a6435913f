"""Host memory that outlives the worker, from the keeper of this host."""

import contextlib
import fcntl
import json
import mmap
import os
import socket
import time
import weakref
from pathlib import Path

from fabric.engine import memory_keeper
from fabric.engine.keeper_process import make_private, start_keeper
from fabric.engine.memory_keeper import LOCK_NAME, MAX_MESSAGE_BYTES, RELEASE, SOCKET_NAME, Wanted

REPLY_TIMEOUT_S = 10.0
MAX_ATTEMPTS = 10
RETRY_AFTER_S = 0.05
BACKLOG = 64


class KeptArena:
    """Memory of the keeper that is mapped here; ``is_new`` if it is not a predecessor's.

    It is this process's alone until it is closed or the process ends. A keeper that dies takes
    nothing away: the memory lives on in the worker.
    """

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        """Get the memory, and start the keeper if there is none.

        Raises:
            OSError: The keeper can't be started or reached, or ``folder`` is not private.
        """
        self._connection, answer, fd = _get(folder, wanted)
        self._end = weakref.finalize(self, self._connection.close)
        self.is_new: bool = json.loads(answer)["is_new"]
        self.memory = mmap.mmap(fd, wanted.num_bytes)
        os.close(fd)

    def close(self, leaves_parked: bool = False) -> None:
        """Free the memory, or leave it to whoever wants the same within the time to linger."""
        if self._end.alive and not leaves_parked:
            with contextlib.suppress(OSError):  # a keeper that is gone keeps nothing
                self._connection.send(RELEASE)
        self._end()


def _get(folder: Path, wanted: Wanted) -> tuple[socket.socket, bytes, int]:
    """A connection, what the keeper answers on it, and the file with the memory."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return _get_once(folder, wanted)
        except ConnectionError:
            # A keeper that is just dying still takes connections; the next one finds none.
            time.sleep(RETRY_AFTER_S)
    return _get_once(folder, wanted)


def _get_once(folder: Path, wanted: Wanted) -> tuple[socket.socket, bytes, int]:
    connection = _ask(folder, wanted)
    try:
        answer, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 1)
        if not fds:
            raise ConnectionError("the memory keeper gives nothing")
    except OSError:
        connection.close()
        raise
    return connection, answer, fds[0]


def _ask(folder: Path, wanted: Wanted) -> socket.socket:
    """A connection on which the keeper will answer."""
    make_private(folder)
    with open(folder / LOCK_NAME, "a") as lock:
        # Whoever has the lock may start a keeper; and none retires meanwhile.
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _connect(folder / SOCKET_NAME) or _start(folder)
        try:
            if memory_keeper.peer_uid(connection) != os.getuid():
                raise PermissionError(f"the memory keeper in {folder} is another user's")
            connection.settimeout(REPLY_TIMEOUT_S)
            connection.send(wanted.encode())
        except OSError:
            connection.close()
            raise
    return connection


def _connect(path: Path) -> socket.socket | None:
    connection = _new_socket()
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError:
        connection.close()
        raise
    return connection


def _start(folder: Path) -> socket.socket:
    """Listen, start a keeper that takes the listener over, and connect."""
    path = folder / SOCKET_NAME
    path.unlink(missing_ok=True)
    with _new_socket() as listener:
        listener.bind(str(path))
        listener.listen(BACKLOG)
        start_keeper(memory_keeper.__file__, [str(folder)], listener.fileno())
        connection = _connect(path)
    if connection is None:
        raise ConnectionError(f"the memory keeper in {folder} is not there")
    return connection


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
