"""Memory for values that are needed one after the other."""

from math import prod

import torch
from torch import Tensor


class ReusedMemory:
    """Gives out one piece of memory again and again: what was in it before is lost.

    Taking new pages from the system costs more than copying what is written there.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The memory as a tensor of this shape, not written."""
        num_bytes = prod(shape) * dtype.itemsize
        if len(self._memory) < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory[:num_bytes].view(dtype).view(shape)
