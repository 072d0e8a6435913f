"""Where ranks find each other: hosted by the driver, so that it survives any rank."""

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

from fabric.core.errors import FabricError, ProtocolError, StaleEpoch
from fabric.parallel.store import EpochStore
from fabric.parallel.wire import let_in, recv_frame, send_frame

MAX_WAIT_S = 1.0
GREETING_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 1024

log = logging.getLogger(__name__)


class RendezvousServer:
    """A TCP server around an EpochStore, with a thread for each connection."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        epoch: int = 0,
        silence_s: float = 1.2,
        secret: str = "",
    ) -> None:
        """Start to serve.

        Args:
            host: Address to listen at; those of other hosts must reach it.
            port: 0 takes a free one.
            epoch: The first.
            silence_s: A member that gives no sign of life for so long is lost.
            secret: What clients must know.
        """
        self._store = EpochStore(epoch, silence_s)
        self._secret = secret
        self._listener = socket.create_server((host, port), backlog=MAX_CONNECTIONS)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closing = False
        self._thread = threading.Thread(target=self._accept, name="rendezvous", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens at."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def raise_epoch(self, epoch: int) -> None:
        """Let the ranks of a later epoch meet, and none of the earlier.

        Raises:
            GroupError: The epoch isn't a later one.
        """
        self._store.raise_epoch(epoch)

    def lost(self, epoch: int) -> list[str]:
        """The members of the epoch that are lost.

        Raises:
            StaleEpoch: It isn't the current epoch.
        """
        return self._store.lost(epoch)

    def close(self) -> None:
        """Stop; clients find their connections closed."""
        with self._lock:
            self._is_closing = True
            connections = list(self._connections)
        # Both calls wake the threads that are blocked on the sockets; closing would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            _shut_down(connection)
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_closing or len(self._connections) >= MAX_CONNECTIONS:
                    connection.close()
                    continue
                self._connections.add(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        session = _Session(self._store)
        try:
            connection.settimeout(GREETING_TIMEOUT_S)
            let_in(connection, self._secret)
            connection.settimeout(None)
            while True:
                send_frame(connection, session.answer(recv_frame(connection)))
        except (OSError, ProtocolError) as error:
            log.debug("A rendezvous connection ended: %s", error)
        finally:
            session.end()
            with self._lock:
                self._connections.discard(connection)
            connection.close()


class _Session:
    """What one connection asks for."""

    def __init__(self, store: EpochStore) -> None:
        self._store = store
        self._membership: tuple[int, str] | None = None
        # Name -> the types of its fields after the epoch, and what answers it.
        self._calls: dict[str, tuple[tuple[type, ...], Callable[..., Any]]] = {
            "set": ((str, bytes), store.set),
            "get": ((str, float), self._get),
            "add": ((str, int), store.add),
            "delete": ((str,), store.delete),
            "beat": ((str,), self._beat),
            "leave": ((str,), store.leave),
            "lost": ((), store.lost),
        }

    def answer(self, fields: list[Any]) -> list[Any]:
        """A status ("ok", "stale" or "error") and the result or the message.

        Raises:
            ProtocolError: The fields aren't those of a call.
        """
        name, *arguments = fields if fields else [None]
        types, call = self._calls.get(name, (None, None)) if isinstance(name, str) else (None, None)
        if types is None or call is None or tuple(map(type, arguments)) != (int, *types):
            raise ProtocolError(f"no such call: {name!r} with {len(arguments)} arguments")
        try:
            return ["ok", call(*arguments)]
        except StaleEpoch as error:
            return ["stale", error.message]
        except FabricError as error:
            return ["error", error.message]

    def end(self) -> None:
        """A member whose connection ends without leaving is lost."""
        if self._membership is not None:
            self._store.drop(*self._membership)

    def _get(self, epoch: int, key: str, wait_s: float) -> bytes | None:
        return self._store.get(epoch, key, min(wait_s, MAX_WAIT_S))

    def _beat(self, epoch: int, member: str) -> None:
        self._store.beat(epoch, member)
        self._membership = (epoch, member)


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("A rendezvous connection was closed already")
