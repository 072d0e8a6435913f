"""Writing keys and values into blocks, and moving whole blocks.

Offsets into a cache are 64 bits wide: an arena may have more than 2^31 elements, and block ids may
count steps of 64 bytes.
"""

import triton
import triton.language as tl

from kernels.triton.jit.numerics import narrow, widen


@triton.jit
def slot_offset(
    slot, num_slots, block_stride, layer_offset, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """Where a slot's key of head 0 is, and whether there is such a slot."""
    is_inside = (slot >= 0) & (slot < num_slots)
    slot = tl.where(is_inside, slot, 0)
    offset = (slot // BLOCK_SIZE) * block_stride + layer_offset + (slot % BLOCK_SIZE) * HEAD_DIM
    return offset, is_inside


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def store_kv(
    key_ptr,
    value_ptr,
    cache_ptr,
    slots_ptr,
    num_tokens,
    key_stride,
    value_stride,
    block_stride,
    layer_offset,
    num_slots,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Copy the heads of ``TOKENS`` tokens; slots outside the cache are skipped."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    slots = tl.load(slots_ptr + tokens, mask=tokens < num_tokens, other=-1)
    targets, is_inside = slot_offset(
        slots, num_slots, block_stride, layer_offset, BLOCK_SIZE, HEAD_DIM
    )
    tokens = tokens.to(tl.int64)
    offsets = tl.arange(0, COLUMNS)
    mask = is_inside[:, None] & (offsets < NUM_KV_HEADS * HEAD_DIM)[None, :]
    head_stride: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    targets = targets[:, None] + (offsets // HEAD_DIM * head_stride + offsets % HEAD_DIM)[None, :]
    keys = tl.load(key_ptr + (tokens * key_stride)[:, None] + offsets[None, :], mask=mask)
    tl.store(cache_ptr + targets, keys, mask=mask)
    values = tl.load(value_ptr + (tokens * value_stride)[:, None] + offsets[None, :], mask=mask)
    tl.store(cache_ptr + NUM_KV_HEADS * head_stride + targets, values, mask=mask)


@triton.jit
def rotate(
    source_ptr,
    target_ptr,
    bias_ptr,
    cos_sin_ptr,
    position,
    num_heads,
    head_stride,
    HAS_BIAS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rotate heads' halves from source to target, ``head_stride`` apart there, and add the bias.

    The bias is added first, and rounded, as if by an operation of its own.
    """
    half: tl.constexpr = HEAD_DIM // 2
    columns = tl.arange(0, COLUMNS)
    heads = tl.arange(0, HEADS)
    mask = (heads < num_heads)[:, None] & (columns < half)[None, :]
    dtype = source_ptr.dtype.element_ty
    offsets = (heads * HEAD_DIM)[:, None] + columns[None, :]
    first = widen(tl.load(source_ptr + offsets, mask=mask, other=0.0))
    second = widen(tl.load(source_ptr + half + offsets, mask=mask, other=0.0))
    if HAS_BIAS:
        first += widen(tl.load(bias_ptr + offsets, mask=mask, other=0.0))
        second += widen(tl.load(bias_ptr + half + offsets, mask=mask, other=0.0))
        first = widen(narrow(first, dtype))
        second = widen(narrow(second, dtype))
    angles = cos_sin_ptr + position.to(tl.int64) * HEAD_DIM + columns
    cos = tl.load(angles, mask=columns < half, other=0.0)[None, :]
    sin = tl.load(angles + half, mask=columns < half, other=0.0)[None, :]
    targets = target_ptr + (heads * head_stride)[:, None] + columns[None, :]
    tl.store(targets, narrow(first * cos - second * sin, dtype), mask=mask)
    tl.store(targets + half, narrow(second * cos + first * sin, dtype), mask=mask)


@triton.jit(do_not_specialize=["max_len"])
def rope(
    query_ptr,
    key_ptr,
    positions_ptr,
    cos_sin_ptr,
    query_stride,
    key_stride,
    max_len,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rotate token ``program_id(0)`` in place: queries if ``program_id(1)`` is 0, keys if it is 1.

    Positions outside the table are skipped. ``HEADS`` and ``KV_HEADS`` are padded.
    """
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token)
    is_placed = (position >= 0) & (position < max_len)
    position = tl.where(is_placed, position, 0)
    if tl.program_id(1) == 0:
        ptr = query_ptr + token * query_stride
        count = tl.where(is_placed, NUM_HEADS, 0)
        rotate(
            ptr, ptr, ptr, cos_sin_ptr, position, count, HEAD_DIM, False, HEADS, HEAD_DIM, COLUMNS
        )
    else:
        ptr = key_ptr + token * key_stride
        count = tl.where(is_placed, NUM_KV_HEADS, 0)
        rotate(
            ptr,
            ptr,
            ptr,
            cos_sin_ptr,
            position,
            count,
            HEAD_DIM,
            False,
            KV_HEADS,
            HEAD_DIM,
            COLUMNS,
        )


@triton.jit(do_not_specialize=["num_slots", "max_len"])
def rope_and_store(
    qkv_ptr,
    bias_ptr,
    cache_ptr,
    positions_ptr,
    slots_ptr,
    cos_sin_ptr,
    qkv_stride,
    block_stride,
    layer_offset,
    num_slots,
    max_len,
    HAS_BIAS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rotate and store ``qkv`` row ``program_id(0)``, after adding the bias.

    ``program_id(1)`` 0 rotates queries in place, 1 rotates keys into their slot, 2 copies values
    there. ``HEADS`` and ``KV_HEADS`` are padded.
    """
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    source = qkv_ptr + token * qkv_stride
    position = tl.load(positions_ptr + token)
    is_placed = (position >= 0) & (position < max_len)
    position = tl.where(is_placed, position, 0)
    head_stride: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    slot = tl.load(slots_ptr + token)
    target, is_inside = slot_offset(
        slot, num_slots, block_stride, layer_offset, BLOCK_SIZE, HEAD_DIM
    )
    target_ptr = cache_ptr + target
    if part == 0:
        count = tl.where(is_placed, NUM_HEADS, 0)
        rotate(
            source,
            source,
            bias_ptr,
            cos_sin_ptr,
            position,
            count,
            HEAD_DIM,
            HAS_BIAS,
            HEADS,
            HEAD_DIM,
            COLUMNS,
        )
    elif part == 1:
        skipped: tl.constexpr = NUM_HEADS * HEAD_DIM
        count = tl.where(is_inside & is_placed, NUM_KV_HEADS, 0)
        rotate(
            source + skipped,
            target_ptr,
            bias_ptr + skipped,
            cos_sin_ptr,
            position,
            count,
            head_stride,
            HAS_BIAS,
            KV_HEADS,
            HEAD_DIM,
            COLUMNS,
        )
    else:
        # Heads of values follow those of keys, in the cache as in the row.
        before: tl.constexpr = (NUM_HEADS + NUM_KV_HEADS) * HEAD_DIM
        heads = tl.arange(0, KV_HEADS)
        columns = tl.arange(0, 2 * COLUMNS)
        count = tl.where(is_inside, NUM_KV_HEADS, 0)
        mask = (heads < count)[:, None] & (columns < HEAD_DIM)[None, :]
        offsets = before + (heads * HEAD_DIM)[:, None] + columns[None, :]
        values = tl.load(source + offsets, mask=mask, other=0.0)
        if HAS_BIAS:
            total = widen(values) + widen(tl.load(bias_ptr + offsets, mask=mask, other=0.0))
            values = narrow(total, values.dtype)
        places = ((NUM_KV_HEADS + heads) * head_stride)[:, None] + columns[None, :]
        tl.store(target_ptr + places, values, mask=mask)


@triton.jit(do_not_specialize=["id_stride", "num_source", "num_target"])
def move_blocks(
    source_ptr,
    target_ptr,
    source_ids_ptr,
    target_ids_ptr,
    id_stride,
    source_stride,
    target_stride,
    num_source,
    num_target,
    block_elements,
    HAS_SOURCE_IDS: tl.constexpr,
    HAS_TARGET_IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Copy part ``program_id(1)`` of block ``program_id(0)`` of a list of blocks.

    Without ids, the i-th block of the list is block i.
    """
    index = tl.program_id(0).to(tl.int64)
    source = index
    target = index
    if HAS_SOURCE_IDS:
        source = tl.load(source_ids_ptr + index * id_stride)
    if HAS_TARGET_IDS:
        target = tl.load(target_ids_ptr + index * id_stride)
    is_inside = (source >= 0) & (source < num_source) & (target >= 0) & (target < num_target)
    source = tl.where(is_inside, source, 0)
    target = tl.where(is_inside, target, 0)
    offsets = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    mask = offsets < tl.where(is_inside, block_elements, 0)
    data = tl.load(source_ptr + source * source_stride + offsets, mask=mask)
    tl.store(target_ptr + target * target_stride + offsets, data, mask=mask)
