"""A rank's view of the rendezvous."""

import logging
import socket
import threading
import time
from typing import Any, Self

from fabric.core.errors import FabricError, GroupError, GroupTimeout, ProtocolError, StaleEpoch
from fabric.parallel.wire import prove_secret, recv_frame, send_frame

BEAT_PERIOD_S = 0.25
_WAIT_SLICE_S = 0.5
_ANSWER_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Rendezvous:
    """A connection to a RendezvousServer, for the ranks of one epoch; any thread may use it."""

    def __init__(
        self, address: tuple[str, int], epoch: int, timeout_s: float = 30.0, secret: str = ""
    ) -> None:
        """Connect.

        Args:
            address: The server's host and port.
            epoch: The one that this rank belongs to.
            timeout_s: How long to wait for other ranks.
            secret: What the server asks for.

        Raises:
            GroupError: The server can't be reached.
        """
        self.address = address
        self.epoch = epoch
        self.timeout_s = timeout_s
        self.secret = secret
        self._lock = threading.Lock()
        try:
            self._connection = socket.create_connection(address, timeout=_ANSWER_TIMEOUT_S)
            prove_secret(self._connection, secret)
        except OSError as error:
            raise GroupError(f"the rendezvous at {address} can't be reached: {error}") from error
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def local_host(self) -> str:
        """This host's address, as the server sees it."""
        return str(self._connection.getsockname()[0])

    def set(self, key: str, value: bytes) -> None:
        """Set a key's value."""
        self._call("set", key, value)

    def get(self, key: str) -> bytes:
        """A key's value, once somebody has set it.

        Raises:
            GroupTimeout: Nobody does in time.
            StaleEpoch: The epoch has been raised.
        """
        deadline = time.monotonic() + self.timeout_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            value = self._call("get", key, min(remaining_s, _WAIT_SLICE_S))
            if isinstance(value, bytes):
                return value
        raise GroupTimeout(f"nobody set {key!r} within {self.timeout_s} s")

    def peek(self, key: str) -> bytes | None:
        """A key's value if it has one."""
        value = self._call("get", key, 0.0)
        return value if isinstance(value, bytes) else None

    def add(self, key: str, amount: int) -> int:
        """Add to a number that starts at 0; return the sum."""
        return int(self._call("add", key, amount))

    def delete(self, prefix: str) -> int:
        """Delete the keys that start so; return how many."""
        return int(self._call("delete", prefix))

    def lost(self) -> list[str]:
        """The members of this epoch that died, froze or can't be reached."""
        return [str(member) for member in self._call("lost")]

    def beat(self, member: str) -> None:
        """Give a sign of life on this connection; see Membership."""
        self._call("beat", member)

    def leave(self, member: str) -> None:
        """Give no more signs of life, without being lost."""
        self._call("leave", member)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, name: str, *arguments: object) -> Any:
        with self._lock:
            try:
                send_frame(self._connection, [name, self.epoch, *arguments])
                status, result = recv_frame(self._connection)
            except (OSError, ProtocolError, ValueError) as error:
                raise GroupError(f"the rendezvous doesn't answer: {error}") from error
        if status == "stale":
            raise StaleEpoch(str(result))
        if status != "ok":
            raise GroupError(f"the rendezvous refuses: {result}")
        return result


class Membership:
    """Signs of life of a rank, from a thread with a connection of its own.

    The process's death closes the connection and its freezing silences it: either makes the
    rank one of the lost, unless it left by ``close``.
    """

    def __init__(self, rendezvous: Rendezvous, member: str) -> None:
        """Become a member.

        Args:
            rendezvous: Says where and in which epoch.
            member: A name that is unique in the epoch.

        Raises:
            GroupError: The server can't be reached or refuses.
        """
        self.member = member
        self._rendezvous = Rendezvous(
            rendezvous.address, rendezvous.epoch, secret=rendezvous.secret
        )
        self._is_closing = threading.Event()
        try:
            self._rendezvous.beat(member)
        except GroupError:
            self._rendezvous.close()
            raise
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave."""
        self._is_closing.set()
        self._thread.join()
        try:
            self._rendezvous.leave(self.member)
        except GroupError:
            log.debug("%s leaves an epoch that is over", self.member)
        self._rendezvous.close()

    def _run(self) -> None:
        while not self._is_closing.wait(BEAT_PERIOD_S):
            try:
                self._rendezvous.beat(self.member)
            except FabricError as error:
                log.info("%s stops giving signs of life: %s", self.member, error.message)
                return
