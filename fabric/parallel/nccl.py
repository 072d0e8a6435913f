"""Ranks on GPUs, by cupy's binding of NCCL."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fabric.core.errors import ConfigError, GroupAborted, GroupError, GroupTimeout
from fabric.parallel.operands import (
    check_parts,
    check_peer,
    check_root,
    check_sum,
    check_tensor,
    gathered_shape,
    part_shape,
)
from fabric.parallel.peers import Peers
from fabric.parallel.traffic import Traffic

# From nccl.h; older cupy releases lack the name of bf16.
_UINT8 = 1
_TYPES = {torch.int32: 2, torch.int64: 4, torch.float32: 7, torch.bfloat16: 9}
_SUM = 0
_IN_PROGRESS = 7

_POLL_S = 0.0002
_CHECK_PERIOD_S = 0.1


def load_nccl() -> Any:
    """Cupy's nccl module, with communicators that don't block the host.

    Raises:
        ConfigError: Cupy or NCCL isn't there.
    """
    # Read by NCCL when it makes its first communicator; cupy has no argument for it.
    os.environ.setdefault("NCCL_COMM_BLOCKING", "0")
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        raise ConfigError(f"groups on GPUs need cupy with NCCL: {error}") from error
    if not nccl.available:
        raise ConfigError("cupy was built without NCCL")
    return nccl


def current_stream() -> int:
    """The handle of torch's current CUDA stream."""
    return int(torch.cuda.current_stream().cuda_stream)


class NcclGroup:
    """One rank of a group of GPUs.

    Operations are queued on torch's current stream and nobody waits for them: failures show in
    ``synchronize``, or in the next operation. Sums are repeatable, but NCCL chooses their order
    by the topology, and rounds bf16 at each step.
    """

    def __init__(
        self,
        peers: Peers,
        rank: int,
        timeout_s: float = 30.0,
        nccl: Any = None,
        stream: Callable[[], int] = current_stream,
    ) -> None:
        """Form the group; returns when all its ranks have.

        Args:
            peers: The ranks; each must be a member of the rendezvous already.
            rank: This process's; its current CUDA device becomes the rank's.
            timeout_s: Longest wait for the other ranks, and for a step in ``synchronize``.
            nccl: In place of cupy's module.
            stream: Says where to queue.

        Raises:
            GroupError: Not all ranks came.
        """
        self.rank = rank
        self.size = peers.size
        self.traffic = Traffic()
        self._peers = peers
        self._timeout_s = timeout_s
        self._nccl = nccl or load_nccl()
        self._stream = stream
        self._is_over = False
        self._communicator = self._connect()

    def all_reduce(self, x: Tensor) -> None:
        """See Group."""
        check_sum(x)
        self.traffic.count("all_reduce", x)
        at, kind = x.data_ptr(), _TYPES[x.dtype]
        self._queue(lambda c, s: c.allReduce(at, at, x.numel(), kind, _SUM, s))

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, 1)
        self.traffic.count("all_gather", x)
        out = x.new_empty(gathered_shape(x, self.size))
        self._queue(lambda c, s: c.allGather(x.data_ptr(), out.data_ptr(), x.nbytes, _UINT8, s))
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See Group."""
        check_sum(x)
        check_parts(x, self.size)
        self.traffic.count("reduce_scatter", x)
        out = x.new_empty(part_shape(x, self.size))
        operands = (x.data_ptr(), out.data_ptr(), out.numel(), _TYPES[x.dtype], _SUM)
        self._queue(lambda c, s: c.reduceScatter(*operands, s))
        return out

    def broadcast(self, x: Tensor, root: int) -> None:
        """See Group."""
        check_tensor(x)
        check_root(root, self.size)
        self.traffic.count("broadcast", x)
        at = x.data_ptr()
        self._queue(lambda c, s: c.broadcast(at, at, x.nbytes, _UINT8, root, s))

    def all_to_all(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, self.size)
        self.traffic.count("all_to_all", x)
        out = torch.empty_like(x)
        part_bytes = x.nbytes // self.size

        def exchange(communicator: Any, stream: int) -> None:
            self._nccl.groupStart()
            for peer in range(self.size):
                offset = peer * part_bytes
                communicator.send(x.data_ptr() + offset, part_bytes, _UINT8, peer, stream)
                communicator.recv(out.data_ptr() + offset, part_bytes, _UINT8, peer, stream)
            self._nccl.groupEnd()

        self._queue(exchange)
        return out

    def send(self, x: Tensor, to: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(to, self.rank, self.size)
        self.traffic.count("send", x)
        self._queue(lambda c, s: c.send(x.data_ptr(), x.nbytes, _UINT8, to, s))

    def recv(self, x: Tensor, source: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(source, self.rank, self.size)
        self.traffic.count("recv", x)
        self._queue(lambda c, s: c.recv(x.data_ptr(), x.nbytes, _UINT8, source, s))

    def barrier(self) -> None:
        """See Group; waits for the stream, too."""
        self.traffic.count("barrier")
        token = torch.zeros(1, device="cuda")
        at, kind = token.data_ptr(), _TYPES[token.dtype]
        self._queue(lambda c, s: c.allReduce(at, at, 1, kind, _SUM, s))
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for what the current stream has to do, as long as the ranks are fine.

        Raises:
            GroupError: They are not; the communicator is aborted, which frees the stream.
        """
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        self._wait(done.query)

    def abort(self) -> None:
        """See Group."""
        if not self._is_over:
            self._is_over = True
            self._communicator.abort()
            self._peers.abort(self.rank)

    def close(self) -> None:
        """Release the communicator, without waiting for what is queued."""
        if not self._is_over:
            self._is_over = True
            self._communicator.abort()

    def _connect(self) -> Any:
        key = f"{self._peers.name}/nccl"
        if self.rank == 0:
            # Cupy's id is a tuple of signed chars.
            self._peers.rendezvous.set(key, bytes(c & 0xFF for c in self._nccl.get_unique_id()))
        received = self._peers.rendezvous.get(key)
        unique_id = tuple(c - 256 if c > 127 else c for c in received)
        kind = self._nccl.NcclCommunicator
        # Not by a plain call: where NCCL is still at it, cupy raises, and we need the object.
        self._communicator = communicator = kind.__new__(kind)
        self._unless_in_progress(lambda: communicator.__init__(self.size, unique_id, self.rank))
        self._wait(self._is_settled)
        return communicator

    def _queue(self, operation: Callable[[Any, int], None]) -> None:
        if self._is_over:
            raise GroupAborted("the group has ended")
        if not self._unless_in_progress(lambda: operation(self._communicator, self._stream())):
            # Rare: the first use of a connection. No other call may come before it stands.
            self._wait(self._is_settled)

    def _is_settled(self) -> bool:
        return self._unless_in_progress(self._communicator.check_async_error)

    def _unless_in_progress(self, call: Callable[[], None]) -> bool:
        """Whether a call of NCCL was completed, and not only begun."""
        try:
            call()
        except (RuntimeError, KeyError) as error:
            # Cupy knows no name for "in progress" and stumbles over it.
            if getattr(error, "status", error.args[0] if error.args else None) == _IN_PROGRESS:
                return False
            self._end(error)
        return True

    def _end(self, error: Exception) -> None:
        try:
            self._peers.check()
        finally:
            self.abort()
        raise GroupError(f"NCCL failed: {error}") from error

    def _wait(self, is_done: Callable[[], bool]) -> None:
        start = time.monotonic()
        next_check = start + _CHECK_PERIOD_S
        while not is_done():
            time.sleep(_POLL_S)
            if time.monotonic() < next_check:
                continue
            next_check += _CHECK_PERIOD_S
            self._check(start)

    def _check(self, start: float) -> None:
        """Look for errors, lost peers and lost time; any of them aborts the communicator."""
        self._is_settled()
        try:
            self._peers.check()
            if time.monotonic() - start > self._timeout_s:
                raise GroupTimeout(f"the ranks didn't finish within {self._timeout_s} s")
        except GroupError:
            self.abort()
            raise
