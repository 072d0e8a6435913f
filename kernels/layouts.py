"""What tensors must look like for kernels that see only their addresses, on any device."""

from torch import Tensor

from kernels.ops import ShapeError

MAX_HEAD_DIM = 256


def describe(x: Tensor) -> str:
    """A tensor's device, dtype, shape and strides, for messages."""
    return f"{x.device} {x.dtype}{list(x.shape)} with strides {list(x.stride())}"


def check_contiguous_heads(name: str, x: Tensor) -> None:
    """Check ``[num_tokens, num_heads, head_dim]`` with contiguous heads; rows may be strided."""
    _, num_heads, head_dim = x.shape if x.dim() == 3 else (0, 0, 0)
    strides = x.stride()
    if (
        not 0 < head_dim <= MAX_HEAD_DIM
        or strides[2] != 1
        or (strides[1] != head_dim and num_heads != 1)
    ):
        raise ShapeError(
            f"{name} is {describe(x)}; [num_tokens, num_heads, head_dim] with contiguous heads "
            f"of up to {MAX_HEAD_DIM} is needed"
        )


def check_contiguous_blocks(name: str, kv_cache: Tensor) -> None:
    """Check that every block is contiguous; blocks may lie at any distance."""
    shape = kv_cache.shape
    if len(shape) == 6 and shape[2] == 2:
        _, _, _, heads, block_size, head_dim = shape
        head = block_size * head_dim
        if kv_cache.stride()[1:] == (2 * heads * head, heads * head, head, head_dim, 1):
            return
    raise ShapeError(
        f"{name} is {describe(kv_cache)}; [num_blocks, num_layers, 2, num_kv_heads, block_size, "
        "head_dim] with contiguous blocks is needed"
    )
