"""Linear layers on the device: which cut a call takes, and who adds the chunks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.triton.configs import ArchConfig, LinearConfig
from kernels.triton.jit import linear as jit

_FOLD_COLUMNS = 1024
# Feature tiles whose weights are shared by programs that run at the same time.
RUNNING_GROUP = 8


def ceil_div(x: int, y: int) -> int:
    """Division that rounds up."""
    return -(-x // y)


def choose_cut(config: ArchConfig, num_tokens: int, dtype: torch.dtype) -> LinearConfig:
    """The cut for a number of tokens; all cuts of a dtype give a row the same bits."""
    cuts = config.linear[dtype is torch.bfloat16]
    return next(cut for cut in cuts if cut.max_tokens is None or num_tokens <= cut.max_tokens)


def num_sharers(config: ArchConfig, cut: LinearConfig, num_tiles: int, in_features: int) -> int:
    """Over how many programs the chunks of a tile are shared out, so that the device is full."""
    chunks = ceil_div(in_features, cut.chunk)
    return max(1, min(chunks, ceil_div(config.num_programs, num_tiles)))


def linear(config: ArchConfig, x: Tensor, weight: Tensor, scales: Tensor | None = None) -> Tensor:
    """``x @ weight.T`` for ``weight[out_features, in_features or more]`` with contiguous rows.

    With ``scales[out_features]`` float32 the weight is int8, and outputs are scaled.
    """
    num_tokens, in_features = x.shape
    out = torch.empty((num_tokens, weight.shape[0]), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    share = share_out(config, x, out)
    cut = share.cut
    jit.linear[share.grid](
        x,
        weight,
        out if scales is None else scales,
        out,
        share.partial,
        num_tokens,
        in_features,
        out.shape[1],
        x.stride(0),
        weight.stride(0),
        FEATURES=cut.features,
        TOKENS=cut.tokens,
        DEPTH=cut.depth,
        CHUNK=cut.chunk,
        IS_EVEN=in_features % cut.depth == 0,
        HAS_SCALES=scales is not None,
        GROUP=RUNNING_GROUP,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        enable_fp_fusion=False,
    )
    if share.is_shared:
        fold(share.partial, scales, out, is_integer=scales is not None)
    return out


@dataclass(frozen=True, slots=True)
class Share:
    """How a call is shared out.

    Attributes:
        cut: Of a program.
        grid: (Tiles, programs that share a tile's chunks).
        partial: ``[num_chunks, num_tokens, out_features]`` float32; empty if no chunks are shared.
    """

    cut: LinearConfig
    grid: tuple[int, int]
    partial: Tensor

    @property
    def is_shared(self) -> bool:
        """Whether chunks are left to be added."""
        return self.grid[1] > 1


def share_out(config: ArchConfig, x: Tensor, out: Tensor) -> Share:
    """Share a call out over programs."""
    num_tokens, in_features = x.shape
    out_features = out.shape[1]
    cut = choose_cut(config, num_tokens, x.dtype)
    num_tiles = ceil_div(out_features, cut.features) * ceil_div(num_tokens, cut.tokens)
    sharers = num_sharers(config, cut, num_tiles, in_features)
    # Of one dtype if it is empty, too: a program for each would be another program.
    num_chunks = ceil_div(in_features, cut.chunk) if sharers > 1 else 0
    partial = out.new_empty((num_chunks, *out.shape), dtype=torch.float32)
    return Share(cut, (num_tiles, sharers), partial)


def fold(partial: Tensor, scales: Tensor | None, out: Tensor, *, is_integer: bool = False) -> None:
    """Add the chunks into ``out``, and multiply its features by ``scales``."""
    jit.fold_chunks[(ceil_div(out.numel(), _FOLD_COLUMNS),)](
        partial,
        partial if scales is None else scales,
        out,
        partial.shape[0],
        out.numel(),
        out.shape[1],
        HAS_SCALES=scales is not None,
        IS_INTEGER=is_integer,
        COLUMNS=_FOLD_COLUMNS,
        enable_fp_fusion=False,
    )
