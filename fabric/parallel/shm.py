"""Ranks that are processes on one host and share memory."""

import os
import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.core.errors import (
    ConfigError,
    GroupAborted,
    GroupError,
    GroupTimeout,
    PeerLost,
)
from fabric.parallel.operands import (
    SUMMABLE,
    OperandError,
    check_parts,
    check_peer,
    check_root,
    check_sum,
    check_tensor,
    describe,
    gathered_shape,
    part_shape,
)
from fabric.parallel.rendezvous import Rendezvous
from fabric.parallel.traffic import Traffic

try:
    from fabric.parallel import _shm
except ImportError:  # Installed where there was no compiler.
    _shm = None  # type: ignore[assignment]

_KINDS = {dtype: kind for kind, dtype in enumerate(SUMMABLE)}
_MIB = 2**20
# A slot has a part for each rank, in steps of 64 elements.
_MIN_PART_BYTES = 512
# Causes in verdicts (csrc/channel.h); the remaining one is that the ranks' calls differ.
_DEAD, _FROZEN, _TIMEOUT, _ABORTED = range(1, 5)


@dataclass(frozen=True, slots=True)
class ShmSettings:
    """How ranks wait, and how much memory they share.

    Attributes:
        timeout_s: Longest wait of one operation for ranks that are alive; None is for ever.
        silence_s: A rank whose process gives no sign of life for so long is lost.
        spin_s: How long a rank looks before it sleeps; None: 50 us, or 0 if there are more
            ranks than processors.
        slot_bytes: Of each rank twice; larger tensors are moved in pieces. A power of two.
        ring_bytes: From each rank to each other. A power of two.
        one_phase_bytes: Up to here every rank sums the whole tensor itself.
    """

    timeout_s: float | None = None
    silence_s: float = 1.0
    spin_s: float | None = None
    slot_bytes: int = _MIB // 4
    ring_bytes: int = _MIB // 4
    one_phase_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        for name in ("slot_bytes", "ring_bytes"):
            value = getattr(self, name)
            if not 4096 <= value <= 2**30 or value & (value - 1):
                raise ConfigError(f"{name} is {value}; a power of two from 4096 to 2**30 is needed")


class ShmGroup:
    """One rank of a group of processes on this host.

    Ranks wait by a bounded spin and then asleep, so that idle ranks use no processor time. The
    memory is anonymous: it is gone when the last rank is, however that ends.

    Source: the layout of large sums is Rabenseifner's (reduce-scatter, then gather), in pieces.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        name: str,
        rank: int,
        size: int,
        settings: ShmSettings | None = None,
    ) -> None:
        """Form the group; returns when all its ranks have.

        Args:
            rendezvous: Where the ranks find each other.
            name: The group's, among those of the epoch.
            rank: This process's.
            size: How many ranks there are.
            settings: The same for all.

        Raises:
            GroupError: Not all ranks came.
        """
        if _shm is None:
            raise ConfigError("fabric.parallel._shm isn't built: install with a C++ compiler")
        self.rank = rank
        self.size = size
        self.traffic = Traffic()
        self._settings = settings or ShmSettings()
        if self._settings.slot_bytes < _MIN_PART_BYTES * size:
            raise ConfigError(f"slots of {self._settings.slot_bytes} bytes are short for {size}")
        self._end: _shm.Rank | None = self._form(rendezvous, f"{name}/memory")

    def all_reduce(self, x: Tensor) -> None:
        """See Group."""
        check_sum(x)
        _check_host(x)
        self.traffic.count("all_reduce", x)
        self._check(self._rank().all_reduce(_KINDS[x.dtype], x.data_ptr(), x.numel()))

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, 1)
        _check_host(x)
        self.traffic.count("all_gather", x)
        out = x.new_empty(gathered_shape(x, self.size))
        self._check(self._rank().all_gather(x.data_ptr(), x.nbytes, out.data_ptr()))
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See Group."""
        check_sum(x)
        check_parts(x, self.size)
        _check_host(x)
        self.traffic.count("reduce_scatter", x)
        out = x.new_empty(part_shape(x, self.size))
        kind = _KINDS[x.dtype]
        self._check(self._rank().reduce_scatter(kind, x.data_ptr(), out.numel(), out.data_ptr()))
        return out

    def broadcast(self, x: Tensor, root: int) -> None:
        """See Group."""
        check_tensor(x)
        check_root(root, self.size)
        _check_host(x)
        self.traffic.count("broadcast", x)
        self._check(self._rank().broadcast(x.data_ptr(), x.nbytes, root))

    def all_to_all(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, self.size)
        _check_host(x)
        self.traffic.count("all_to_all", x)
        out = torch.empty_like(x)
        part_bytes = x.nbytes // self.size
        self._check(self._rank().all_to_all(x.data_ptr(), part_bytes, out.data_ptr()))
        return out

    def send(self, x: Tensor, to: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(to, self.rank, self.size)
        _check_host(x)
        self.traffic.count("send", x)
        self._check(self._rank().send(x.data_ptr(), x.nbytes, to))

    def recv(self, x: Tensor, source: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(source, self.rank, self.size)
        _check_host(x)
        self.traffic.count("recv", x)
        self._check(self._rank().recv(x.data_ptr(), x.nbytes, source))

    def barrier(self) -> None:
        """See Group."""
        self.traffic.count("barrier")
        self._check(self._rank().barrier())

    def abort(self) -> None:
        """See Group."""
        if self._end is not None:
            self._end.abort()

    def close(self) -> None:
        """Let go of the memory; a rank that still waits for this one finds it lost."""
        self._end = None

    def _form(self, rendezvous: Rendezvous, key: str) -> "_shm.Rank":
        settings = self._settings
        if self.rank == 0:
            nonce = secrets.randbits(63)
            fd = _shm.create_segment(self.size, settings.slot_bytes, settings.ring_bytes, nonce)
            rendezvous.set(key, f"{os.getpid()} {fd} {nonce}".encode())
        else:
            pid, owners_fd, nonce = map(int, rendezvous.get(key).split())
            fd = _open_segment(f"/proc/{pid}/fd/{owners_fd}")
        try:
            end = self._attach(fd, nonce)
            # The others open rank 0's descriptor: it must last until all have.
            if end.attach(rendezvous.timeout_s) >> 16 == _TIMEOUT:
                raise GroupTimeout(f"not all {self.size} ranks came in {rendezvous.timeout_s} s")
        finally:
            os.close(fd)
        return end

    def _attach(self, fd: int, nonce: int) -> "_shm.Rank":
        settings = self._settings
        spin_s = settings.spin_s
        if spin_s is None:
            spin_s = 50e-6 if self.size <= len(os.sched_getaffinity(0)) else 0.0
        timeout_s = -1.0 if settings.timeout_s is None else settings.timeout_s
        try:
            return _shm.Rank(
                fd=fd,
                nonce=nonce,
                rank=self.rank,
                one_phase_bytes=settings.one_phase_bytes,
                spin_s=spin_s,
                silence_s=settings.silence_s,
                timeout_s=timeout_s,
            )
        except ValueError as error:
            raise GroupError(str(error)) from error

    def _rank(self) -> "_shm.Rank":
        if self._end is None:
            raise GroupAborted("the group is closed")
        return self._end

    def _check(self, verdict: int) -> None:
        """Raise what a verdict stands for."""
        if verdict == 0:
            return
        cause, rank = verdict >> 16, verdict & 0xFFFF
        if cause == _DEAD:
            raise PeerLost(rank, "died")
        if cause == _FROZEN:
            raise PeerLost(rank, f"gave no sign of life for {self._settings.silence_s} s")
        if cause == _TIMEOUT:
            raise GroupTimeout(f"rank {rank} didn't come in {self._settings.timeout_s} s")
        if cause == _ABORTED:
            raise GroupAborted(f"rank {rank} aborted the group")
        raise GroupError(f"rank {rank} calls another operation, or another size of it")


def _check_host(x: Tensor) -> None:
    if not x.is_cpu:
        raise OperandError(f"the tensor is {describe(x)}; shared memory takes those on the host")


def _open_segment(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        raise GroupError(f"rank 0's shared memory can't be opened: {error}") from error
