"""Every operation of a device's backend against the reference, at odd sizes."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from gpu_bench import Bench, Found
from torch import Tensor

from kernels.ops import Backend, DecoderShape, DecoderWeights, RaggedBatch, WeightFormat
from kernels.reference import ReferenceBackend

# ||out - reference|| / ||reference||: one rounding of the output, and sums in another order.
# What most models use comes first, should the time not suffice for all.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
REFERENCE = ReferenceBackend()
# (Context, new tokens) of each sequence.
MIXED = ((33, 1), (5, 5), (600, 1), (70, 17), (32, 1), (64, 64))
DECODES = ((1, 1), (17, 1), (1500, 1), (256, 1))
# (Query heads, KV heads, head_dim, block_size)
HEADS = ((8, 2, 128, 16), (6, 2, 64, 16), (4, 4, 80, 8), (8, 1, 96, 32), (4, 1, 256, 16))

Case = tuple[str, Tensor, Tensor]


def check_ops(bench: Bench, found: Found) -> None:
    """Worst errors by operation and dtype; raises if one is too large, after all were looked at."""
    failed = []
    for dtype in TOLERANCES:
        for cases in (linears, row_ops, attentions, decoder_layers):
            try:
                problems = _check(bench, cases, dtype, found)
            except Exception as error:
                problems = [f"{cases.__name__} {dtype}: {type(error).__name__}: {error}"[:500]]
            failed += problems
    found["failed"] = failed
    if failed:
        raise AssertionError(f"{len(failed)} operations differ: {failed[0]}")


def _check(
    bench: Bench,
    cases: Callable[[Bench, torch.dtype], Iterator[Case]],
    dtype: torch.dtype,
    found: Found,
) -> list[str]:
    problems = []
    kind = str(dtype).removeprefix("torch.")
    for name, actual, expected in cases(bench, dtype):
        error = _error(actual, expected)
        key = f"{name.partition(' ')[0]} {kind}"
        found[key] = max(float(found.get(key, 0.0)), error)
        # Not the other way about: NaN must fail.
        if not error <= TOLERANCES[dtype]:
            problems.append(f"{name} {kind}: {error:.2e}")
    return problems


def _error(actual: Tensor, expected: Tensor) -> float:
    wide, want = actual.double(), expected.double()
    return float((wide - want).norm() / want.norm().clamp_min(1e-30))


def linears(bench: Bench, dtype: torch.dtype) -> Iterator[Case]:
    shapes = ((80, 128), (384, 256), (1536, 1024), (1000, 4096))
    for out_features, in_features in shapes[: bench.size(4, 1)]:
        weight = bench.randn(out_features, in_features, dtype=dtype, seed=1) * 0.05
        for kind in WeightFormat:
            packed, plain = (b.pack_linear(weight, kind) for b in (bench.backend, REFERENCE))
            for num_tokens in (1, 3, 17, 64, 130)[: bench.size(5, 2)]:
                x = bench.randn(num_tokens, in_features, dtype=dtype, seed=2)
                name = f"linear-{kind} {num_tokens}x{in_features}x{out_features}"
                yield name, bench.backend.linear(x, packed), REFERENCE.linear(x, plain)


def row_ops(bench: Bench, dtype: torch.dtype) -> Iterator[Case]:
    ours = bench.backend
    for num_tokens, width in ((1, 576), (7, 2048), (130, 4096))[: bench.size(3, 1)]:
        x, weight = (bench.randn(n, width, dtype=dtype, seed=n) for n in (num_tokens, 1))
        weight = weight.view(width)
        expected = REFERENCE.rms_norm(x, weight, 1e-5)
        yield "rms_norm", ours.rms_norm(x, weight, 1e-5), expected
        residuals = [bench.randn(num_tokens, width, dtype=dtype, seed=9) for _ in range(2)]
        summed = ours.add_rms_norm(x, residuals[0], weight, 1e-5)
        yield "add_rms_norm", summed, REFERENCE.add_rms_norm(x, residuals[1], weight, 1e-5)
        yield "add_rms_norm's residual", *residuals
        yield "silu_and_mul", ours.silu_and_mul(x), REFERENCE.silu_and_mul(x)
    for num_heads, num_kv_heads, head_dim, _ in HEADS[: bench.size(5, 1)]:
        heads = bench.randn(11, num_heads + num_kv_heads, head_dim, dtype=dtype)
        pair = [heads.clone().split([num_heads, num_kv_heads], dim=1) for _ in range(2)]
        positions = torch.arange(3, 14, dtype=torch.int32, device=bench.device)
        table = bench.randn(32, head_dim, seed=5)
        ours.rope(*pair[0], positions, table)
        REFERENCE.rope(*pair[1], positions, table)
        yield "rope's queries", pair[0][0], pair[1][0]
        yield "rope's keys", pair[0][1], pair[1][1]


def attentions(bench: Bench, dtype: torch.dtype) -> Iterator[Case]:
    for num_heads, num_kv_heads, head_dim, block_size in HEADS[: bench.size(5, 1)]:
        for lengths in (MIXED, DECODES)[: bench.size(2, 1)]:
            lengths = lengths[: bench.size(6, 2)]
            batch, num_blocks = ragged(bench, lengths, block_size)
            num_tokens = len(batch.positions)
            name = f"attention {num_heads}/{num_kv_heads}x{head_dim}"
            caches, outs = [], []
            for backend in (bench.backend, REFERENCE):
                shape = (num_blocks, 2, 2, num_kv_heads, block_size, head_dim)
                cache = bench.randn(*shape, dtype=dtype, seed=3)
                key, value = (
                    bench.randn(num_tokens, num_kv_heads, head_dim, dtype=dtype, seed=s)
                    for s in (4, 5)
                )
                backend.store_kv(key, value, cache, 1, batch.slots)
                query = bench.randn(num_tokens, num_heads, head_dim, dtype=dtype, seed=6)
                outs.append(backend.paged_attention(query, cache, 1, batch, head_dim**-0.5))
                caches.append(cache)
            yield name, *outs
            yield f"store_kv {name}", *caches
            yield (
                f"copy_blocks {name}",
                *(_copied(b, caches[1]) for b in (bench.backend, REFERENCE)),
            )


def _copied(backend: Backend, cache: Tensor) -> Tensor:
    target = cache.clone()
    pairs = torch.tensor([[0, len(cache) - 1], [1, len(cache) - 2]])
    backend.copy_blocks(cache, target, pairs)
    return target


def decoder_layers(bench: Bench, dtype: torch.dtype) -> Iterator[Case]:
    for has_bias in (False, True):
        outs = [_decoded(bench, backend, dtype, has_bias) for backend in (bench.backend, REFERENCE)]
        yield "run_layers", *outs


def _decoded(bench: Bench, backend: Backend, dtype: torch.dtype, has_bias: bool) -> Tensor:
    hidden, features, num_heads, num_kv_heads, head_dim = 128, 352, 4, 2, 32
    width = (num_heads + 2 * num_kv_heads) * head_dim

    def matrix(out_features: int, in_features: int, seed: int) -> Tensor:
        return bench.randn(out_features, in_features, dtype=dtype, seed=seed) * 0.05

    weights = DecoderWeights(
        input_norm=bench.randn(hidden, dtype=dtype, seed=1),
        qkv=backend.pack_linear(matrix(width, hidden, 2)),
        qkv_bias=bench.randn(width, dtype=dtype, seed=3) if has_bias else None,
        output=backend.pack_linear(matrix(hidden, num_heads * head_dim, 4)),
        mlp_norm=bench.randn(hidden, dtype=dtype, seed=5),
        gate_up=backend.pack_linear(matrix(2 * features, hidden, 6)),
        down=backend.pack_linear(matrix(hidden, features, 7)),
    )
    shape = DecoderShape(num_heads, num_kv_heads, head_dim, 1e-5, bench.randn(2048, head_dim))
    batch, num_blocks = ragged(bench, MIXED[: bench.size(6, 2)], 16)
    cache = bench.randn(num_blocks, 2, 2, num_kv_heads, 16, head_dim, dtype=dtype, seed=8)
    layers = [backend.decoder_layer(shape, weights, index) for index in range(2)]
    x = bench.randn(len(batch.positions), hidden, dtype=dtype, seed=9)
    return backend.run_layers(layers, x, batch, cache)


def ragged(
    bench: Bench, lengths: tuple[tuple[int, int], ...], block_size: int, *, in_order: bool = False
) -> tuple[RaggedBatch, int]:
    """A batch of (context, new tokens) over scattered blocks, and how many blocks there are."""
    counts = [-(-context // block_size) for context, _ in lengths]
    num_blocks = sum(counts) + 3
    generator = torch.Generator().manual_seed(7)
    ids = torch.arange(num_blocks) if in_order else torch.randperm(num_blocks, generator=generator)
    tables = torch.zeros((len(lengths), max(counts)), dtype=torch.int32)
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    for row, (start, end) in enumerate(pairwise(ends)):
        tables[row, : end - start] = ids[start:end]
    positions, slots = [], []
    for row, (context, new) in enumerate(lengths):
        own = torch.arange(context - new, context)
        positions.append(own.int())
        slots.append(tables[row].long()[own // block_size] * block_size + own % block_size)
    batch = RaggedBatch(
        positions=torch.cat(positions).to(bench.device),
        slots=torch.cat(slots).to(bench.device),
        query_start=torch.tensor([0, *(new for _, new in lengths)])
        .cumsum(0)
        .to(bench.device, torch.int32),
        context_lens=torch.tensor([c for c, _ in lengths], dtype=torch.int32).to(bench.device),
        block_tables=tables.to(bench.device),
    )
    return batch, num_blocks
