"""Checks of what is passed to a group, and the one definition of a sum over ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fabric.core.errors import FabricError

# In the order of the extension's kinds.
SUMMABLE = (torch.float32, torch.bfloat16, torch.int32, torch.int64)


class OperandError(FabricError):
    """A tensor or a rank that an operation can't take; the group is as it was."""


def describe(x: Tensor) -> str:
    """A tensor's device, dtype, shape and strides, for messages."""
    return f"{x.device} {x.dtype}{list(x.shape)} with strides {list(x.stride())}"


def check_tensor(x: Tensor) -> None:
    """Check that a tensor's elements lie in one piece of memory, in order."""
    if not x.is_contiguous():
        raise OperandError(f"the tensor is {describe(x)}; it must be contiguous")


def check_sum(x: Tensor) -> None:
    """Check that tensors like ``x`` can be summed."""
    check_tensor(x)
    if x.dtype not in SUMMABLE:
        names = ", ".join(str(dtype) for dtype in SUMMABLE)
        raise OperandError(f"the tensor is {describe(x)}; sums are of {names}")


def check_parts(x: Tensor, num_parts: int) -> None:
    """Check that a tensor has equal parts along dimension 0."""
    check_tensor(x)
    if x.dim() == 0 or x.shape[0] % num_parts:
        raise OperandError(
            f"the tensor is {describe(x)}; dimension 0 must consist of {num_parts} equal parts"
        )


def check_root(root: int, size: int) -> None:
    """Check that a rank is one of the group's."""
    if not 0 <= root < size:
        raise OperandError(f"rank {root} is not one of the group's {size}")


def check_peer(peer: int, rank: int, size: int) -> None:
    """Check that a rank is another one of the group."""
    check_root(peer, size)
    if peer == rank:
        raise OperandError(f"rank {rank} can't send to or receive from itself")


def part_shape(x: Tensor, num_parts: int) -> tuple[int, ...]:
    """The shape of one of the equal parts along dimension 0."""
    return (x.shape[0] // num_parts, *x.shape[1:])


def gathered_shape(x: Tensor, size: int) -> tuple[int, ...]:
    """The shape of ``size`` tensors like ``x`` along dimension 0."""
    return (x.shape[0] * size, *x.shape[1:])


def ordered_sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum from first to last; bf16 is summed in fp32 and rounded once.

    Every group on the host that sums does it so, in C++ or here: their results are equal bitwise.
    """
    is_bf16 = parts[0].dtype is torch.bfloat16
    total = parts[0].float() if is_bf16 else parts[0].clone()
    for part in parts[1:]:
        total += part
    return total.to(parts[0].dtype)
