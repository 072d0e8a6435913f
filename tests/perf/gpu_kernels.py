"""A GPU's measured ceilings, and how near single kernels come to them."""

from collections.abc import Callable, Sequence

import torch
from gpu_bench import Bench, Found
from gpu_ops import ragged

GIB = 2**30
ROTATED_BYTES = 2**28
BF16 = torch.bfloat16
# The attention of Llama 3 8B.
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
# Its linear layers: (out_features, in_features).
LINEARS = {
    "qkv": (6144, 4096),
    "output": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}


def measure_ceilings(bench: Bench, found: Found) -> None:
    """Copy bandwidth (bytes read and written), matrix rate, and pinned copies both ways."""
    num_bytes = bench.size(4 * GIB, 2**20)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    copy_s = bench.seconds(lambda: target.copy_(source))
    found["copy_bytes_per_s"] = 2 * num_bytes / copy_s
    size = bench.size(8192, 64)
    a, b = (bench.randn(size, size, dtype=BF16, seed=s) for s in (1, 2))
    found["matrix_flop_per_s"] = 2 * size**3 / bench.seconds(lambda: a @ b)
    num_bytes = bench.size(GIB, 2**20)
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=bench.is_cuda).random_()
    device = torch.empty(num_bytes, dtype=torch.uint8, device=bench.device)
    out_s = bench.seconds(lambda: host.copy_(device, non_blocking=True))
    in_s = bench.seconds(lambda: device.copy_(host, non_blocking=True))
    found["pinned_out_bytes_per_s"] = num_bytes / out_s
    found["pinned_in_bytes_per_s"] = num_bytes / in_s


def measure_decode_attention(bench: Bench, found: Found) -> None:
    """Paged decode of many sequences, with scattered blocks and with blocks one after the other."""
    num_seqs, context = bench.size(64, 2), bench.size(2048, 20)
    lengths = ((context, 1),) * num_seqs
    times = {}
    for name in ("scattered", "identity"):
        batch, num_blocks = ragged(bench, lengths, BLOCK_SIZE, in_order=name == "identity")
        shape = (num_blocks, bench.size(4, 1), 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
        cache = torch.empty(shape, dtype=BF16, device=bench.device).normal_()
        query = bench.randn(num_seqs, NUM_HEADS, HEAD_DIM, dtype=BF16)

        def attend(query=query, cache=cache, batch=batch) -> torch.Tensor:
            return bench.backend.paged_attention(query, cache, 0, batch, HEAD_DIM**-0.5)

        times[name] = bench.graphed_seconds(attend)
        found[f"{name}_us"] = times[name] * 1e6
        del cache
    num_bytes = num_seqs * context * 2 * NUM_KV_HEADS * HEAD_DIM * BF16.itemsize
    found["bytes_per_s"] = num_bytes / times["scattered"]
    share = found["bytes_per_s"] / bench.ceiling("copy_bytes_per_s")
    bench.meet("paged_decode_of_copy_bandwidth", share)
    bench.meet("paged_decode_over_identity_table", times["scattered"] / times["identity"])
    found["one_sequence_us"] = _one_sequence_s(bench, context) * 1e6


def _one_sequence_s(bench: Bench, context: int) -> float:
    """A single long decode, which is fast only if its context is split."""
    batch, num_blocks = ragged(bench, ((context, 1),), BLOCK_SIZE)
    shape = (num_blocks, 1, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    cache = bench.randn(*shape, dtype=BF16)
    query = bench.randn(1, NUM_HEADS, HEAD_DIM, dtype=BF16)
    scale = HEAD_DIM**-0.5
    return bench.graphed_seconds(
        lambda: bench.backend.paged_attention(query, cache, 0, batch, scale)
    )


def measure_prefill_attention(bench: Bench, found: Found) -> None:
    """A long prompt at once, beside torch's attention over the same tokens in one piece."""
    length = bench.size(4096, 17)
    batch, num_blocks = ragged(bench, ((length, length),), BLOCK_SIZE)
    cache = bench.randn(num_blocks, 1, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, dtype=BF16)
    query = bench.randn(length, NUM_HEADS, HEAD_DIM, dtype=BF16)
    scale = HEAD_DIM**-0.5
    ours_s = bench.graphed_seconds(
        lambda: bench.backend.paged_attention(query, cache, 0, batch, scale)
    )
    num_flop = 2 * length * length * NUM_HEADS * HEAD_DIM
    found["flop_per_s"] = num_flop / ours_s
    found["of_matrix_rate"] = found["flop_per_s"] / bench.ceiling("matrix_flop_per_s")
    heads = [bench.randn(1, n, length, HEAD_DIM, dtype=BF16) for n in (NUM_HEADS, 8, 8)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    torch_s = bench.graphed_seconds(lambda: sdpa(*heads, is_causal=True, enable_gqa=True))
    found["sdpa_flop_per_s"] = num_flop / torch_s
    found["ms"], found["sdpa_ms"] = ours_s * 1e3, torch_s * 1e3


def measure_linears(bench: Bench, found: Found) -> None:
    """Each linear layer for few tokens against bandwidth, for many against the matrix rate.

    Columns: layer, tokens, us, share of the ceiling; us and share of torch's own.
    """
    rows = found["rows"] = []
    for name, (out_features, in_features) in LINEARS.items():
        shape = (bench.size(out_features, 64), bench.size(in_features, 64))
        # As many as no cache holds, one after the other.
        num_copies = bench.size(-(-ROTATED_BYTES // (2 * out_features * in_features)), 1)
        weights = [bench.randn(*shape, dtype=BF16, seed=i) * 0.02 for i in range(num_copies)]
        packed = [bench.backend.pack_linear(weight) for weight in weights]
        for num_tokens in (1, 8, 32, 4096)[: bench.size(4, 1)]:
            x = bench.randn(num_tokens, shape[1], dtype=BF16, seed=2)
            ours_s = _each_s(bench, bench.backend.linear, x, packed)
            torch_s = _each_s(bench, torch.nn.functional.linear, x, weights)
            memory_s = weights[0].nbytes / bench.ceiling("copy_bytes_per_s")
            matrix_s = 2 * num_tokens * weights[0].numel() / bench.ceiling("matrix_flop_per_s")
            floor_s = max(memory_s, matrix_s)
            rows.append(
                (
                    name,
                    num_tokens,
                    round(ours_s * 1e6, 1),
                    round(floor_s / ours_s, 3),
                    round(torch_s * 1e6, 1),
                    round(floor_s / torch_s, 3),
                )
            )


def _each_s(
    bench: Bench, multiply: Callable[..., torch.Tensor], x: torch.Tensor, weights: Sequence[object]
) -> float:
    """Seconds of one product, of all of them together."""

    def run() -> None:
        for weight in weights:
            multiply(x, weight)

    return bench.graphed_seconds(run) / len(weights)
