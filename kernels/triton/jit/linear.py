"""A linear layer whose sums have one order, whatever the number of tokens.

The output is computed transposed, ``weight @ x.T``: features are the rows of the matrix
instructions and tokens their columns, so that one token and thousands take the same instruction
shape but for its number of columns. Input features are summed in chunks of ``CHUNK`` at fixed
positions, each in steps of ``DEPTH`` from zero, and chunks are added in order: by the program that
walks them all, or, where there are too few programs, by :func:`fold_chunks`.
"""

import triton
import triton.language as tl

from kernels.triton.jit.numerics import as_operand, dot, narrow


@triton.jit
def place_tile(num_feature_tiles, num_token_tiles, GROUP: tl.constexpr):
    """Feature tile and token tile of ``program_id(0)``.

    Programs that run at the same time share ``GROUP`` feature tiles, whose weights stay in cache.
    """
    tile = tl.program_id(0)
    tiles_of_group = GROUP * num_token_tiles
    first = tile // tiles_of_group * GROUP
    size = tl.minimum(num_feature_tiles - first, GROUP)
    within = tile % tiles_of_group
    return first + within % size, within // size


@triton.jit
def spoil(total):
    """NaN for infinities: rows that are not finite give NaN with integer weights."""
    return total + (total - total)


@triton.jit(do_not_specialize=["num_tokens"])
def linear(
    x_ptr,
    weight_ptr,
    scales_ptr,
    out_ptr,
    partial_ptr,
    num_tokens,
    in_features,
    out_features,
    x_stride,
    weight_stride,
    FEATURES: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_EVEN: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of ``x @ weight.T``; integer weights have a scale for each feature.

    With ``num_programs(1)`` > 1, each program of dimension 1 leaves its chunks' sums in
    ``partial[chunk, token, feature]``.
    """
    feature_tile, token_tile = place_tile(
        tl.cdiv(out_features, FEATURES), tl.cdiv(num_tokens, TOKENS), GROUP
    )
    features = feature_tile * FEATURES + tl.arange(0, FEATURES)
    tokens = token_tile * TOKENS + tl.arange(0, TOKENS)
    # Past the edge the last row is read again, and nothing of it is stored.
    weight_rows = tl.minimum(features, out_features - 1).to(tl.int64)
    x_rows = tl.minimum(tokens, num_tokens - 1).to(tl.int64)
    depths = tl.arange(0, DEPTH)
    weight_ptrs = weight_ptr + weight_rows[:, None] * weight_stride + depths[None, :]
    x_ptrs = x_ptr + x_rows[None, :] * x_stride + depths[:, None]
    mask = (tokens < num_tokens)[:, None] & (features < out_features)[None, :]
    positions = tokens.to(tl.int64)[:, None] * out_features + features[None, :]
    total = tl.zeros((FEATURES, TOKENS), tl.float32)
    for chunk in range(tl.program_id(1), tl.cdiv(in_features, CHUNK), tl.num_programs(1)):
        start = chunk * CHUNK
        chunk_sum = tl.zeros((FEATURES, TOKENS), tl.float32)
        for k in range(start, tl.minimum(start + CHUNK, in_features), DEPTH):
            if IS_EVEN:
                weight = tl.load(weight_ptrs + k)
                x = tl.load(x_ptrs + k)
            else:
                is_inside = depths < in_features - k
                weight = tl.load(weight_ptrs + k, mask=is_inside[None, :], other=0.0)
                x = tl.load(x_ptrs + k, mask=is_inside[:, None], other=0.0)
            if HAS_SCALES:
                weight = as_operand(weight, x.dtype)
            chunk_sum = dot(weight, x, chunk_sum)
        if tl.num_programs(1) > 1:
            pointers = (
                partial_ptr + tl.cast(chunk, tl.int64) * num_tokens * out_features + positions
            )
            tl.store(pointers, tl.trans(chunk_sum), mask=mask)
        else:
            total += chunk_sum
    if tl.num_programs(1) == 1:
        if HAS_SCALES:
            total = spoil(total * tl.load(scales_ptr + weight_rows)[:, None])
        out = narrow(tl.trans(total), out_ptr.dtype.element_ty)
        tl.store(out_ptr + positions, out, mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def linear_int4(
    x_ptr,
    nibbles_ptr,
    scales_ptr,
    offsets_ptr,
    scale_units_ptr,
    offset_units_ptr,
    out_ptr,
    partial_ptr,
    num_tokens,
    in_features,
    out_features,
    x_stride,
    weight_stride,
    FEATURES: tl.constexpr,
    TOKENS: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """:func:`linear` for weights of 4 bits: groups of ``SIZE`` with a scale and an offset each.

    A group's products with its integers, exact in the dtype of ``x``, are summed and then scaled;
    so is its sum of ``x``, taken by the same instruction from ones. The low halves of ``SIZE``
    bytes are a group, the high halves the next one.
    """
    feature_tile, token_tile = place_tile(
        tl.cdiv(out_features, FEATURES), tl.cdiv(num_tokens, TOKENS), GROUP
    )
    features = feature_tile * FEATURES + tl.arange(0, FEATURES)
    tokens = token_tile * TOKENS + tl.arange(0, TOKENS)
    weight_rows = tl.minimum(features, out_features - 1).to(tl.int64)
    x_rows = tl.minimum(tokens, num_tokens - 1).to(tl.int64)
    depths = tl.arange(0, SIZE)
    nibble_ptrs = nibbles_ptr + weight_rows[:, None] * weight_stride + depths[None, :]
    x_ptrs = x_ptr + x_rows[None, :] * x_stride + depths[:, None]
    scale_units = tl.load(scale_units_ptr + weight_rows)
    offset_units = tl.load(offset_units_ptr + weight_rows)
    mask = (tokens < num_tokens)[:, None] & (features < out_features)[None, :]
    positions = tokens.to(tl.int64)[:, None] * out_features + features[None, :]
    total = tl.zeros((FEATURES, TOKENS), tl.float32)
    zeros = tl.zeros((FEATURES, TOKENS), tl.float32)
    ones = as_operand(tl.full((FEATURES, SIZE), 1, tl.int8), x_ptr.dtype.element_ty)
    for chunk in range(tl.program_id(1), tl.cdiv(in_features, CHUNK), tl.num_programs(1)):
        start = chunk * CHUNK
        chunk_sum = tl.zeros((FEATURES, TOKENS), tl.float32)
        for k in range(start, tl.minimum(start + CHUNK, in_features), 2 * SIZE):
            nibbles = tl.load(nibble_ptrs + k // 2)
            for half in tl.static_range(2):
                group = k // SIZE + half
                is_inside = depths + half * SIZE < in_features - k
                x = tl.load(x_ptrs + (k + half * SIZE), mask=is_inside[:, None], other=0.0)
                integers = ((nibbles >> (4 * half)) & 15).to(tl.int8) - 8
                places = tl.cast(group, tl.int64) * out_features + weight_rows
                scales = tl.load(scales_ptr + places).to(tl.float32) * scale_units
                offsets = tl.load(offsets_ptr + places).to(tl.float32) * offset_units
                products = dot(as_operand(integers, x.dtype), x, zeros)
                chunk_sum = tl.fma(products, scales[:, None], chunk_sum)
                chunk_sum = tl.fma(dot(ones, x, zeros), offsets[:, None], chunk_sum)
        if tl.num_programs(1) > 1:
            pointers = partial_ptr + tl.cast(chunk, tl.int64) * num_tokens * out_features
            tl.store(pointers + positions, tl.trans(chunk_sum), mask=mask)
        else:
            total += chunk_sum
    if tl.num_programs(1) == 1:
        out = narrow(tl.trans(spoil(total)), out_ptr.dtype.element_ty)
        tl.store(out_ptr + positions, out, mask=mask)


@triton.jit(do_not_specialize=["num_chunks"])
def fold_chunks(
    partial_ptr,
    scales_ptr,
    out_ptr,
    num_chunks,
    num_elements,
    out_features,
    HAS_SCALES: tl.constexpr,
    IS_INTEGER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the chunks of each output element, in order; then scale by output feature."""
    offsets = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    mask = offsets < num_elements
    total = tl.zeros((COLUMNS,), tl.float32)
    for chunk in range(num_chunks):
        total += tl.load(
            partial_ptr + tl.cast(chunk, tl.int64) * num_elements + offsets, mask=mask, other=0.0
        )
    if HAS_SCALES:
        total *= tl.load(scales_ptr + offsets % out_features, mask=mask, other=0.0)
    if IS_INTEGER:
        total = spoil(total)
    tl.store(out_ptr + offsets, narrow(total, out_ptr.dtype.element_ty), mask=mask)
