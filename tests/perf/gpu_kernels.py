"""A GPU's measured ceilings, and how near single kernels come to them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_bench import Bench, Found
from gpu_ops import ragged

from kernels.ops import WeightFormat

Multiply = Callable[[torch.Tensor, Any], torch.Tensor]

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

    Columns: layer, format, tokens, us, share of the ceiling; torch's bfloat16 is the last format.
    """
    rows = found["rows"] = []
    for name, shape in LINEARS.items():
        if bench.is_smoke:
            shape = (64, 128)
        for label, multiply, weights, num_bytes in _forms(bench, shape):
            for num_tokens in (1, 8, 32, 4096)[: bench.size(4, 1)]:
                x = bench.randn(num_tokens, shape[1], dtype=BF16, seed=2)
                seconds = _each_s(bench, multiply, x, weights)
                memory_s = num_bytes / bench.ceiling("copy_bytes_per_s")
                matrix_s = 2 * num_tokens * shape[0] * shape[1] / bench.ceiling("matrix_flop_per_s")
                share = max(memory_s, matrix_s) / seconds
                rows.append((name, label, num_tokens, round(seconds * 1e6, 1), round(share, 3)))


def _forms(bench: Bench, shape: tuple[int, int]) -> Iterator[tuple[str, Multiply, list[Any], int]]:
    """A layer as each format, as many of them as no cache holds, and the bytes of one."""
    num_copies = bench.size(-(-ROTATED_BYTES // (2 * shape[0] * shape[1])), 1)
    weights = [bench.randn(*shape, dtype=BF16, seed=i) * 0.02 for i in range(num_copies)]
    for kind in WeightFormat:
        # The fewer bytes, the more of them.
        count = num_copies * (1 if kind is WeightFormat.DENSE else bench.size(4, 1))
        first = bench.backend.pack_linear(weights[0], kind)
        packed = [replace(first, data=first.data.clone()) for _ in range(count)]
        yield str(kind), bench.backend.linear, packed, packed[0].data.nbytes
    yield "torch", torch.nn.functional.linear, weights, weights[0].nbytes


def _each_s(bench: Bench, multiply: Multiply, x: torch.Tensor, weights: list[Any]) -> float:
    """Seconds of one product, of all of them together."""

    def run() -> None:
        for weight in weights:
            multiply(x, weight)

    return bench.graphed_seconds(run) / len(weights)
