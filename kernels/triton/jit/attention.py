"""Paged attention in one arithmetic for all rows, and the fold of its splits.

A row is a (token, query head). Its context is cut into *splits* of ``SPLIT`` keys at fixed
positions, and a split into tiles of ``TILE`` keys. A split's softmax starts from nothing and goes
tile by tile; splits are folded in order. What a program does with a split does not depend on who
folds it: itself, where it walks the whole context (prompts), or :func:`fold_splits`, where several
programs share it (decodes). Tiles and splits that lie wholly after a row's own position leave its
bits as they are: they multiply by one and add zero.

Source: FlashAttention (Dao et al., 2022); Flash-Decoding (Dao et al., 2023) for splits; vLLM (Kwon
et al., SOSP 2023), section 4.1, for the block table.
"""

import triton
import triton.language as tl

from kernels.triton.jit.numerics import dot, find_sequence, narrow


@triton.jit
def merge(max_a, sum_a, total_a, max_b, sum_b, total_b):
    """Softmax state of two sets of keys, a's before b's: running maximum, sum, weighted values."""
    top = tl.maximum(max_a, max_b)
    # Rows without a key so far.
    base = tl.where(top == float("-inf"), 0.0, top)
    weight_a = tl.exp2(max_a - base)
    weight_b = tl.exp2(max_b - base)
    total = tl.fma(total_a, weight_a[:, None], total_b * weight_b[:, None])
    return top, tl.fma(sum_a, weight_a, sum_b * weight_b), total


@triton.jit
def attend_split(
    query,
    row_positions,
    keys_ptr,
    block_table_ptr,
    start,
    end,
    context_len,
    block_stride,
    num_blocks,
    score_scale,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    VALUES_OFFSET: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Softmax state of the keys from ``start`` to ``end`` for each row of a tile of queries."""
    columns = tl.arange(0, COLUMNS)
    column_mask = columns < HEAD_DIM
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile_start in range(start, end, TILE):
        positions = tile_start + tl.arange(0, TILE)
        is_stored = positions < context_len
        blocks = tl.load(block_table_ptr + positions // BLOCK_SIZE, mask=is_stored, other=0)
        is_stored = is_stored & (blocks >= 0) & (blocks < num_blocks)
        blocks = tl.where(is_stored, blocks, 0).to(tl.int64)
        offsets = blocks * block_stride + positions % BLOCK_SIZE * HEAD_DIM
        pointers = keys_ptr + offsets[:, None] + columns[None, :]
        mask = is_stored[:, None] & column_mask[None, :]
        keys = tl.load(pointers, mask=mask, other=0.0)
        # What lies in blocks after the context may be anything, NaN too.
        values = tl.load(pointers + VALUES_OFFSET, mask=mask, other=0.0)
        scores = dot(query, tl.trans(keys), tl.zeros((ROWS, TILE), tl.float32)) * score_scale
        is_seen = is_stored[None, :] & (positions[None, :] <= row_positions[:, None])
        scores = tl.where(is_seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        rescale = tl.exp2(top - base)
        weight_sum = tl.fma(weight_sum, rescale, tl.sum(weights, axis=1))
        total = dot(narrow(weights, values.dtype), values, total * rescale[:, None])
        top = new_top
    return top, weight_sum, total


# Compiled once, not once more where such an argument is 1 or a multiple of 16.
@triton.jit(
    do_not_specialize=[
        "num_seqs",
        "max_blocks",
        "num_blocks",
        "max_splits",
        "partial_tokens",
    ]
)
def paged_attention(
    query_ptr,
    out_ptr,
    cache_ptr,
    partial_ptr,
    partial_state_ptr,
    query_start_ptr,
    context_lens_ptr,
    block_tables_ptr,
    query_stride,
    block_stride,
    layer_offset,
    num_seqs,
    max_blocks,
    num_blocks,
    max_splits,
    partial_tokens,
    score_scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Attention of row tile ``program_id(0)`` of the batch with KV head ``program_id(1)``.

    A tile is ``ROWS`` rows of one sequence: token after token, the query heads of the KV head
    within a token. A sequence of at most ``partial_tokens`` new tokens, if ``num_programs(2)`` > 1,
    is shared by the programs of dimension 2: they leave a state for each split, and
    :func:`fold_splits` folds them.
    """
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    head_elements: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = find_sequence(query_start_ptr, num_seqs, tile, group, ROWS)
    first_token = tl.load(query_start_ptr + sequence)
    num_tokens = tl.load(query_start_ptr + sequence + 1) - first_token
    context_len = tl.load(context_lens_ptr + sequence)
    context_len = tl.minimum(context_len, max_blocks * BLOCK_SIZE)
    first_row = (tile - (first_token * group // ROWS + sequence)) * ROWS

    is_shared = (tl.num_programs(2) > 1) & (num_tokens <= partial_tokens) & (context_len > SPLIT)
    # A tile past the end of its sequence's rows walks nothing.
    is_needed = (first_row < num_tokens * group) & (is_shared | (tl.program_id(2) == 0))
    last_token = tl.minimum((first_row + ROWS - 1) // group, num_tokens - 1)
    end = tl.minimum(context_len - num_tokens + last_token + 1, context_len)
    end = tl.where(is_needed, end, 0)
    step = tl.where(is_shared, tl.num_programs(2), 1)

    rows = first_row + tl.arange(0, ROWS)
    tokens = rows // group
    heads = kv_head * group + rows % group
    is_row = tokens < tl.where(is_needed, num_tokens, 0)
    row_positions = context_len - num_tokens + tokens
    token_ids = (first_token + tokens).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    column_mask = columns < HEAD_DIM
    mask = is_row[:, None] & column_mask[None, :]
    query_offsets = token_ids * query_stride + heads * HEAD_DIM
    query = tl.load(query_ptr + query_offsets[:, None] + columns[None, :], mask=mask, other=0.0)
    keys_ptr = cache_ptr + layer_offset + kv_head * head_elements
    block_table_ptr = block_tables_ptr + sequence.to(tl.int64) * max_blocks

    places = (sequence * partial_tokens + tokens).to(tl.int64)
    places = (places * NUM_HEADS + heads) * max_splits
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for split in range(tl.program_id(2), (end + SPLIT - 1) // SPLIT, step):
        split_top, split_sum, split_total = attend_split(
            query,
            row_positions,
            keys_ptr,
            block_table_ptr,
            split * SPLIT,
            tl.minimum(split * SPLIT + SPLIT, end),
            context_len,
            block_stride,
            num_blocks,
            score_scale,
            ROWS,
            TILE,
            BLOCK_SIZE,
            NUM_KV_HEADS * head_elements,
            HEAD_DIM,
            COLUMNS,
        )
        if is_shared:
            place = places + split
            pointers = partial_ptr + place[:, None] * HEAD_DIM + columns[None, :]
            tl.store(pointers, split_total, mask=mask)
            tl.store(partial_state_ptr + place * 2, split_top, mask=is_row)
            tl.store(partial_state_ptr + place * 2 + 1, split_sum, mask=is_row)
        else:
            top, weight_sum, total = merge(
                top, weight_sum, total, split_top, split_sum, split_total
            )

    divisor = tl.where(weight_sum == 0.0, 1.0, weight_sum)
    out = narrow(tl.div_rn(total, divisor[:, None]), out_ptr.dtype.element_ty)
    out_offsets = (token_ids * NUM_HEADS + heads) * HEAD_DIM
    is_row = tokens < tl.where(is_shared | (not is_needed), 0, num_tokens)
    mask = is_row[:, None] & column_mask[None, :]
    tl.store(out_ptr + out_offsets[:, None] + columns[None, :], out, mask=mask)


@triton.jit(do_not_specialize=["max_context", "max_splits", "partial_tokens"])
def fold_splits(
    partial_ptr,
    partial_state_ptr,
    out_ptr,
    query_start_ptr,
    context_lens_ptr,
    max_context,
    max_splits,
    partial_tokens,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Fold the splits of head ``program_id(1)`` of a token of a shared sequence, in order."""
    place = tl.program_id(0)
    head = tl.program_id(1)
    sequence = place // partial_tokens
    token = place % partial_tokens
    first_token = tl.load(query_start_ptr + sequence)
    num_tokens = tl.load(query_start_ptr + sequence + 1) - first_token
    context_len = tl.minimum(tl.load(context_lens_ptr + sequence), max_context)
    is_shared = (num_tokens <= partial_tokens) & (context_len > SPLIT) & (token < num_tokens)
    end = tl.where(is_shared, context_len - num_tokens + token + 1, 0)

    columns = tl.arange(0, COLUMNS)
    mask = columns < HEAD_DIM
    place = (place.to(tl.int64) * NUM_HEADS + head) * max_splits
    top = tl.full((1,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((1,), tl.float32)
    total = tl.zeros((1, COLUMNS), tl.float32)
    for split in range((end + SPLIT - 1) // SPLIT):
        state_ptrs = partial_state_ptr + (place + split) * 2 + tl.arange(0, 1)
        pointers = partial_ptr + (place + split) * HEAD_DIM + columns
        split_total = tl.load(pointers, mask=mask, other=0.0)
        top, weight_sum, total = merge(
            top,
            weight_sum,
            total,
            tl.load(state_ptrs),
            tl.load(state_ptrs + 1),
            split_total[None, :],
        )
    divisor = tl.where(weight_sum == 0.0, 1.0, weight_sum)
    out = narrow(tl.div_rn(total, divisor[:, None]), out_ptr.dtype.element_ty)
    row = (first_token + token).to(tl.int64) * NUM_HEADS + head
    pointers = out_ptr + row * HEAD_DIM + columns
    mask = columns < tl.where(is_shared, HEAD_DIM, 0)
    tl.store(pointers[None, :], out, mask=mask[None, :])
