"""What each operation must return, by plain tensor arithmetic."""

import torch
from torch import Tensor

from fabric.parallel.group import Group
from fabric.parallel.operands import SUMMABLE

SUMS = ("all_reduce", "reduce_scatter")
MOVES = ("all_gather", "all_to_all", "broadcast", "exchange")
OPERATIONS = (*SUMS, *MOVES)
DTYPES = (*SUMMABLE, torch.uint8, torch.bool)
# Rows for each rank, and columns: nothing, one element, odd ones, and more than a slot holds.
SHAPES = ((0, 3), (1, 1), (3, 5), (7, 129), (1, 100_003), (41, 1601))


def example(dtype: torch.dtype, shape: tuple[int, ...], rank: int) -> Tensor:
    """What a rank contributes; floats whose sums round differently in each order."""
    generator = torch.Generator().manual_seed(rank)
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=generator) * 10.0 ** (rank - 1)).to(dtype)
    low, high = (0, 2) if dtype is torch.bool else (0, 200)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def contribution(
    operation: str, dtype: torch.dtype, shape: tuple[int, int], size: int, rank: int
) -> Tensor:
    rows = shape[0] * size if operation in ("reduce_scatter", "all_to_all") else shape[0]
    return example(dtype, (rows, shape[1]), rank)


def apply(group: Group, operation: str, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
    """Run an operation on this rank's contribution."""
    x = contribution(operation, dtype, shape, group.size, group.rank)
    if operation == "all_reduce":
        group.all_reduce(x)
        return x
    if operation == "broadcast":
        group.broadcast(x, group.size - 1)
        return x
    if operation == "exchange":
        return exchange(group, x)
    result: Tensor = getattr(group, operation)(x)
    return result


def exchange(group: Group, x: Tensor) -> Tensor:
    """Send to the next rank, receive from the one before."""
    received = torch.empty_like(x)
    to, source = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    if group.rank == 0:
        group.send(x, to)
        group.recv(received, source)
    else:
        group.recv(received, source)
        group.send(x, to)
    return received


def expected(
    operation: str, dtype: torch.dtype, shape: tuple[int, int], size: int, rank: int
) -> Tensor:
    """What ``apply`` must return on a rank of a group without hosts."""
    given = [contribution(operation, dtype, shape, size, r) for r in range(size)]
    if operation in SUMS:
        total = plain_sum(given)
        return total if operation == "all_reduce" else total.chunk(size)[rank]
    if operation == "all_gather":
        return torch.cat(given)
    if operation == "all_to_all":
        return torch.cat([x.view(size, *shape)[rank] for x in given])
    return given[-1] if operation == "broadcast" else given[rank - 1]


def plain_sum(given: list[Tensor]) -> Tensor:
    """Element by element from the first rank to the last, in fp32 at least."""
    wide = [x.float() if x.dtype is torch.bfloat16 else x for x in given]
    total = wide[0]
    for x in wide[1:]:
        total = total + x
    return total.to(given[0].dtype)


def cases(operation: str) -> list[tuple[torch.dtype, tuple[int, int]]]:
    dtypes = SUMMABLE if operation in SUMS else DTYPES
    return [(dtype, shape) for dtype in dtypes for shape in SHAPES]


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bitwise."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
