"""What the driver of a device group and its shard workers tell each other over their sockets.

The driver speaks first: Challenge; the worker answers with Join. When it knows its shards of the
models it sends Opened, and gets Begin with the memory that all ranks have agreed on. From then on
each Run makes it compute one iteration; the rank that samples answers each with Ran, in the same
order. Each Move makes it begin moves of blocks and weights, between the iterations before and
after it; every rank answers with Moved as they finish, which may be during iterations. End is the
last frame.
"""

import contextlib
import socket
import threading
from dataclasses import dataclass

from fabric.core.errors import ProtocolError
from fabric.core.weights import WeightResult
from fabric.engine.executor import HostedModel
from fabric.engine.memory_plan import DeviceMemory
from fabric.kv.transfer import TransferResult, WorkerOrders
from fabric.rpc.framing import LENGTH_BYTES, Framing
from fabric.rpc.liveness import notice_lost_host
from fabric.scheduler.output import SchedulerOutput, StepResult

VERSION = 3


@dataclass(frozen=True, slots=True)
class Challenge:
    """From the driver, first: what the worker must prove that it knows the secret over."""

    version: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Join:
    """From the worker: who it is, and its proof."""

    version: int
    epoch: int
    rank: int
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """From the worker: the models that it can load its shards of, and what they take there."""

    models: tuple[HostedModel, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """From the driver: how each rank cuts its memory."""

    memory: DeviceMemory


@dataclass(frozen=True, slots=True)
class Run:
    """From the driver: the next iteration."""

    output: SchedulerOutput


@dataclass(frozen=True, slots=True)
class Ran:
    """From the rank that samples: an iteration's tokens, and its costs since the start.

    ``execute_s`` is what the iterations took here; ``collective_s`` is the part of it spent in
    operations of the rank's groups, waiting for other ranks included.
    """

    result: StepResult
    execute_s: float
    num_collectives: int
    collective_bytes: int
    collective_s: float


@dataclass(frozen=True, slots=True)
class Move:
    """From the driver: what to do with blocks and weights before the next iteration."""

    orders: WorkerOrders


@dataclass(frozen=True, slots=True)
class Moved:
    """From every rank: what it has finished of its moves."""

    transfers: tuple[TransferResult, ...] = ()
    weights: tuple[WeightResult, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """From the driver, last: the gang is not needed any more, nor what it has parked."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From the worker, last: why it can't go on; ``kind`` is the error's class."""

    kind: str
    message: str


ShardFrame = Challenge | Join | Opened | Begin | Run | Ran | Failed | Move | Moved | End
KINDS: tuple[type[ShardFrame], ...] = (
    Challenge,
    Join,
    Opened,
    Begin,
    Run,
    Ran,
    Failed,
    Move,
    Moved,
    End,
)


class ShardLink:
    """One end of a driver's connection to a worker; blocking, for one reader and any writers."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._framing: Framing[ShardFrame] = Framing(KINDS)
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_lost_host(connection)

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def set_timeout(self, timeout_s: float) -> None:
        """How long a frame that has begun may take, sent or received; then it is an OSError."""
        self._connection.settimeout(timeout_s)

    def encode(self, frame: ShardFrame) -> bytes:
        """A frame's bytes, which may be sent to several workers."""
        return self._framing.encode(frame)

    def send(self, frame: ShardFrame) -> None:
        """Send a frame.

        Raises:
            OSError: The connection is lost.
        """
        self.send_bytes(self.encode(frame))

    def send_bytes(self, data: bytes) -> None:
        """Send an encoded frame.

        Raises:
            OSError: The connection is lost.
        """
        with self._sending:
            self._connection.sendall(data)

    def receive(self) -> ShardFrame:
        """Wait for a frame.

        Raises:
            OSError: The connection is lost.
            ProtocolError: What came is no frame of this protocol.
        """
        length = int.from_bytes(self._receive_exactly(LENGTH_BYTES), "big")
        if length > self._framing.max_frame_bytes:
            raise ProtocolError(
                f"a frame of {length} bytes; at most {self._framing.max_frame_bytes} are allowed"
            )
        return self._framing.decode(self._receive_exactly(length))

    def close(self) -> None:
        """Close the connection; a reader that waits gets an OSError."""
        with contextlib.suppress(OSError):  # the other side was quicker
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._connection.recv(size - len(data))
            if not part:
                raise ConnectionResetError("the connection was closed")
            data += part
        return bytes(data)
