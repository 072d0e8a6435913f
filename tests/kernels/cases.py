"""Inputs for kernel tests, and how near a backend must come to the reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ops import Backend, RaggedBatch

DTYPES = (torch.float32, torch.bfloat16)

# (relative, absolute). bfloat16: one rounding of the output, where sums in another order may fall
# on the other side.
TOLERANCES = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (2**-7, 2e-3)}

NAN = float("nan")


def assert_near(actual: Tensor, expected: Tensor) -> None:
    rtol, atol = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def random_tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return drawn.to(torch.get_default_device(), dtype)


def strided_rows(x: Tensor, before: int = 8, after: int = 24) -> Tensor:
    """The same values as a slice of wider rows, as a fused projection gives them; NaN around."""
    width = x[0].numel()
    rows = torch.full((x.shape[0], before + width + after), NAN, dtype=x.dtype)
    rows[:, before : before + width] = x.reshape(x.shape[0], width)
    return rows[:, before : before + width].view(x.shape)


@dataclass(frozen=True, slots=True)
class Heads:
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """The whole of a sequence's attention inputs; ``num_computed`` tokens were stored before."""

    query: Tensor
    key: Tensor
    value: Tensor
    num_computed: int = 0

    @classmethod
    def random(
        cls, seed: int, length: int, heads: Heads, dtype: torch.dtype, num_new: int
    ) -> "Sequence":
        def draw(offset: int, num_heads: int) -> Tensor:
            return random_tensor(3 * seed + offset, length, num_heads, heads.head_dim, dtype=dtype)

        return cls(
            draw(0, heads.num_heads),
            draw(1, heads.num_kv_heads),
            draw(2, heads.num_kv_heads),
            length - num_new,
        )


def make_cache(num_blocks: int, block_size: int, heads: Heads, dtype: torch.dtype) -> Tensor:
    """Two layers of NaN in an arena whose blocks don't touch."""
    shape = (num_blocks, 2, 2, heads.num_kv_heads, block_size, heads.head_dim)
    block_elements = torch.Size(shape[1:]).numel()
    arena = torch.full((num_blocks, block_elements + 37), NAN, dtype=dtype)
    return arena[:, :block_elements].view(shape)


def attend(
    backend: Backend, sequences: list[Sequence], heads: Heads, block_size: int
) -> list[Tensor]:
    """Store all sequences in scattered blocks, and attend with the new tokens of each."""
    dtype = sequences[0].query.dtype
    lengths = [s.query.shape[0] for s in sequences]
    num_blocks = [-(-length // block_size) for length in lengths]
    draw = torch.Generator().manual_seed(7)
    ids = torch.randperm(sum(num_blocks) + 3, generator=draw, device="cpu")
    cache = make_cache(sum(num_blocks) + 3, block_size, heads, dtype)
    tables = torch.zeros((len(sequences), max(num_blocks)), dtype=torch.int32)
    new_counts = [length - s.num_computed for s, length in zip(sequences, lengths, strict=True)]
    slots = []
    taken = 0
    for i, (sequence, count) in enumerate(zip(sequences, num_blocks, strict=True)):
        tables[i, :count] = ids[taken : taken + count]
        taken += count
        positions = torch.arange(lengths[i])
        all_slots = tables[i].long()[positions // block_size] * block_size + positions % block_size
        backend.store_kv(
            strided_rows(sequence.key), strided_rows(sequence.value), cache, 1, all_slots
        )
        slots.append(all_slots[sequence.num_computed :])
    batch = RaggedBatch(
        positions=torch.cat(
            [
                torch.arange(s.num_computed, length, dtype=torch.int32)
                for s, length in zip(sequences, lengths, strict=True)
            ]
        ),
        slots=torch.cat(slots),
        query_start=torch.tensor([0, *new_counts]).cumsum(0).to(torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=tables,
    )
    query = strided_rows(torch.cat([s.query[s.num_computed :] for s in sequences]))
    out = backend.paged_attention(query, cache, 1, batch, heads.head_dim**-0.5)
    assert out.is_contiguous()
    return list(out.split(new_counts))
