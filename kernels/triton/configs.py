"""How kernels are cut, for each architecture: tiles, splits, warps and pipeline stages.

What changes rounding (``split``, ``tile``, ``depth``, ``chunk``, ``features``) is the same for all
shapes of a call, so that a row's bits don't depend on them; what does not may follow the shape.
The figures for GPUs are estimates from occupancy and shared memory until they are measured by
:mod:`kernels.triton.tuning`.
"""

from dataclasses import dataclass

import torch

INTERPRETER = 0


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Cut of paged attention.

    Attributes:
        rows: (Token, query head) rows of a program; of all calls, so that one program serves
            prompts and decodes.
        tile: Keys of one step of the online softmax.
        split: Keys of one split, a multiple of ``tile``.
        num_warps: Of a program; ``num_stages`` likewise.
        num_stages: Of the pipeline that loads keys and values.
    """

    rows: int
    tile: int
    split: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """Cut of a linear layer for a number of tokens.

    Attributes:
        max_tokens: The most tokens that this cut is for; None: any number.
        tokens: Tokens of a program.
        features: Output features of a program.
        depth: Input features of one step.
        chunk: Input features that are summed before they are added to those before them; a
            multiple of ``depth``, and of all cuts of an architecture.
        num_warps: Of a program; ``num_stages`` likewise.
        num_stages: Of the pipeline that loads operands.
    """

    max_tokens: int | None
    tokens: int
    features: int
    depth: int
    chunk: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class ArchConfig:
    """What kernels need to know of a device.

    Attributes:
        attention: By (padded head_dim, is the dtype bfloat16).
        linear: By whether the dtype is bfloat16, fewest tokens first; the last takes any number.
        num_programs: Programs that fill the device; work is shared out until there are so many.
        min_sharers: Programs that a long context of a decode is shared over even if there are
            programs enough, so that it is not the last to end.
    """

    attention: dict[tuple[int, bool], AttentionConfig]
    linear: dict[bool, tuple[LinearConfig, ...]]
    num_programs: int
    min_sharers: int


_HEAD_DIMS = (16, 32, 64, 128, 256)


def interpreter_config() -> ArchConfig:
    """Small cuts, so that short contexts have several tiles, splits and chunks."""
    attention = AttentionConfig(rows=32, tile=32, split=128, num_warps=4, num_stages=1)
    linear = (
        LinearConfig(16, 16, 64, 128, 256, 4, 1),
        LinearConfig(None, 64, 64, 128, 256, 4, 1),
    )
    return ArchConfig(
        attention={(size, bf16): attention for size in _HEAD_DIMS for bf16 in (False, True)},
        linear={False: linear, True: linear},
        num_programs=8,
        min_sharers=2,
    )


def gpu_config(capability: int, num_processors: int) -> ArchConfig:
    """Cuts for a compute capability such as 80 or 90 (major * 10 + minor).

    Args:
        capability: Hopper's matrix instructions take 64 rows, those before it 16.
        num_processors: Streaming multiprocessors of the device.
    """
    has_wgmma = capability >= 90
    attention = {}
    for size in _HEAD_DIMS:
        attention[size, True] = AttentionConfig(
            rows=64 if has_wgmma else 16,
            tile=64 if size <= 128 else 32,
            split=512,
            num_warps=4 if size <= 128 else 8,
            num_stages=3 if has_wgmma else 2,
        )
        attention[size, False] = AttentionConfig(
            rows=16,
            tile=32 if size <= 128 else 16,
            split=512,
            num_warps=4 if size <= 128 else 8,
            num_stages=2,
        )
    return ArchConfig(
        attention=attention,
        linear={True: _BF16_LINEAR, False: _FP32_LINEAR},
        num_programs=4 * num_processors,
        min_sharers=4,
    )


# One instruction shape for all: 64 features by some tokens by 16 of depth (wgmma), or 16 by 8 by
# 16 (mma.sync); only the number of tokens of a program changes.
_BF16_LINEAR = (
    LinearConfig(16, 16, 64, 64, 1024, 4, 5),
    LinearConfig(32, 32, 64, 64, 1024, 4, 4),
    LinearConfig(64, 64, 64, 64, 1024, 4, 4),
    LinearConfig(256, 64, 128, 64, 1024, 8, 4),
    LinearConfig(None, 128, 128, 64, 1024, 8, 4),
)
_FP32_LINEAR = (
    LinearConfig(16, 16, 32, 32, 1024, 4, 3),
    LinearConfig(None, 64, 64, 32, 1024, 8, 3),
)


def device_config(device: torch.device) -> ArchConfig:
    """The cuts for a device; for the host, those of the interpreter."""
    if device.type == "cpu":
        return interpreter_config()
    major, minor = torch.cuda.get_device_capability(device)
    properties = torch.cuda.get_device_properties(device)
    return gpu_config(10 * major + minor, int(properties.multi_processor_count))
