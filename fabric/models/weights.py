"""Which checkpoint tensors make up which parameter, and whether a checkpoint has just those."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fabric.core.errors import CheckpointError
from fabric.models.checkpoint import ALL, Checkpoint
from fabric.models.reused_memory import ReusedMemory

MAX_NAMES_SHOWN = 10
# Older checkpoints store RoPE's frequencies, which follow from the configuration.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class WeightPart:
    """A checkpoint tensor, the shape that it must have as a whole, and the range that is read."""

    name: str
    shape: tuple[int, ...]
    rows: slice = field(default_factory=lambda: ALL)
    columns: slice = field(default_factory=lambda: ALL)

    @property
    def read_shape(self) -> tuple[int, ...]:
        """The shape of the range that is read."""
        ranges = zip((self.rows, self.columns), self.shape, strict=False)
        return tuple(len(range(*part.indices(size))) for part, size in ranges)


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter: its parts one below the other, in this order."""

    parts: tuple[WeightPart, ...]

    @classmethod
    def of(cls, *parts: WeightPart) -> "Weight":
        """Stack these parts."""
        return cls(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what :meth:`read` returns."""
        shapes = [part.read_shape for part in self.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype | None,
        memory: ReusedMemory | None = None,
    ) -> Tensor:
        """Read the parts and stack their rows; a single one may be a view of the file.

        With no dtype given, values stay as they are: bfloat16 if all parts are, else float32.
        Several parts are stacked in ``memory``, if there is some.
        """
        parts = [checkpoint.read(part.name, part.rows, part.columns) for part in self.parts]
        wrong = [part.dtype for part in parts if not part.is_floating_point()]
        if wrong:
            raise CheckpointError(f"{self.parts[0].name} is {wrong[0]}; floats are needed")
        if dtype is None:
            is_bf16 = all(part.dtype is torch.bfloat16 for part in parts)
            dtype = torch.bfloat16 if is_bf16 else torch.float32
        if len(parts) == 1:
            return parts[0].to(dtype)
        out = None if memory is None else memory.tensor(self.shape, dtype)
        return torch.cat([part.to(dtype) for part in parts], out=out)


def check_weights(weights: Iterable[Weight], checkpoint: Checkpoint, spare: Iterable[str]) -> int:
    """Check names and shapes of a whole checkpoint before anything is read.

    Args:
        weights: What the whole model needs, whichever part of it is read.
        checkpoint: What there is.
        spare: Names that may be there without being used.

    Returns:
        The number of elements of all weights.

    Raises:
        CheckpointError: Tensors are missing, unused or mis-shaped; names them all at once.
    """
    needed = {part.name: part.shape for weight in weights for part in weight.parts}
    present = {name for name in checkpoint.names() if not name.endswith(IGNORED_SUFFIXES)}
    both = sorted(needed.keys() & present)
    shapes = {name: checkpoint.shape(name) for name in both}
    problems = {
        "missing": sorted(needed.keys() - present),
        "unused": sorted(present - needed.keys() - set(spare)),
        "wrong shape": [
            f"{name} {list(shapes[name])} instead of {list(needed[name])}"
            for name in both
            if shapes[name] != needed[name]
        ],
    }
    found = [f"{problem}: {_shortened(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError("the checkpoint doesn't fit the model; " + "; ".join(found))
    return sum(torch.Size(shape).numel() for shape in needed.values())


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    rest = len(names) - MAX_NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
