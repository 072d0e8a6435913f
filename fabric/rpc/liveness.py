"""How soon a TCP connection ends when the other host, or the way to it, is gone."""

import socket
from typing import Protocol

# Given up when what was sent isn't acknowledged for a second; where nothing is sent, probed
# after a second of silence and given up within two. The kernel answers however busy its processes
# are, so a frozen one is not noticed here.
OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000),  # ms
)


class Options(Protocol):
    """What a socket and asyncio's stand-in for one have in common."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None:
        """Set an option."""
        ...


def notice_lost_host(connection: Options) -> None:
    """End a connection within two seconds of losing the other host."""
    for level, name, value in OPTIONS:
        connection.setsockopt(level, name, value)
