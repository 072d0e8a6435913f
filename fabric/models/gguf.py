"""GGUF checkpoints: quantized blocks in, Hugging Face names and row order out."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from fabric.core.errors import CheckpointError
from fabric.models.checkpoint import ALL
from fabric.models.gguf_header import GgufTensor, read_gguf_header

SUPPORTED_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
ROPE_FACTORS = "rope_freqs.weight"

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GgufCheckpoint:
    """The tensors of a GGUF file under their Hugging Face names; others keep theirs."""

    def __init__(self, path: Path) -> None:
        """Read the head and check that every tensor is whole and of a supported type.

        Raises:
            CheckpointError: The file is truncated or malformed, or a type isn't supported.
        """
        header = read_gguf_header(path)
        self.metadata = header.metadata
        self._path = path
        self._arch = str(header.metadata.get("general.architecture", "unknown"))
        # As a plain array: a memmap costs microseconds for each of the many slices of a decoding.
        self._bytes: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r").view(
            np.ndarray
        )
        self._types: dict[str, GGMLQuantizationType] = {}
        self._tensors: dict[str, GgufTensor] = {}
        for tensor in header.tensors.values():
            name = hugging_face_name(tensor.name)
            self._tensors[name] = tensor
            self._types[name] = self._check(tensor)
        factors = self._tensors.pop(ROPE_FACTORS, None)
        self.rope_factors: tuple[float, ...] = (
            () if factors is None else tuple(self._decode(factors, ROPE_FACTORS, ALL).tolist())
        )

    def names(self) -> frozenset[str]:
        """All tensors' names, but for the rope factors."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._tensors[name].shape

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """See Checkpoint; whole rows are decoded, and columns cut from them.

        Query and key rows must be those of whole heads. Vectors are small and decoded whole.
        """
        if len(self.shape(name)) == 1:
            return self._decode(self._tensors[name], name, ALL)[rows]
        weight = self._decode(self._tensors[name], name, rows)
        if self._arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = self._restore_rows(weight, name, rows)
        return weight if columns == ALL else weight[:, columns]

    def close(self) -> None:
        """Let go of the file."""
        self._bytes = np.empty(0, dtype=np.uint8)

    def _check(self, tensor: GgufTensor) -> GGMLQuantizationType:
        where = f"{self._path}: {tensor.name}"
        try:
            kind = GGMLQuantizationType(tensor.type_number)
        except ValueError as error:
            raise CheckpointError(f"{where} is of unknown type {tensor.type_number}") from error
        if kind.name not in SUPPORTED_TYPES:
            raise CheckpointError(
                f"{where} is of type {kind.name}; supported: {', '.join(SUPPORTED_TYPES)}"
            )
        block_size, _ = GGML_QUANT_SIZES[kind]
        if tensor.shape[-1] % block_size:
            raise CheckpointError(f"{where}: {kind.name} rows of {tensor.shape[-1]} elements")
        if tensor.offset + _num_bytes(tensor, kind) > len(self._bytes):
            raise CheckpointError(f"{where} reaches beyond the end of the file")
        return kind

    def _decode(self, tensor: GgufTensor, name: str, rows: slice) -> Tensor:
        kind = self._types[name]
        stored = self._bytes[tensor.offset : tensor.offset + _num_bytes(tensor, kind)]
        raw = stored.reshape(*tensor.shape[:-1], -1)[rows]
        shape = (*raw.shape[:-1], tensor.shape[-1])
        if kind is GGMLQuantizationType.BF16:
            return torch.from_numpy(raw.copy()).view(torch.bfloat16).view(shape)
        if kind is GGMLQuantizationType.F16:
            return torch.from_numpy(raw.copy()).view(torch.float16).view(shape)
        values = quants.dequantize(raw.view(np.float32) if kind.name == "F32" else raw, kind)
        return torch.from_numpy(np.array(values, dtype=np.float32, copy=kind.name == "F32"))

    def _restore_rows(self, weight: Tensor, name: str, rows: slice) -> Tensor:
        """Undo GGUF's pairing of rotary rows: back from (d, d + 1) to halves (d, d + half)."""
        suffix = "head_count" if name.endswith("q_proj.weight") else "head_count_kv"
        key = f"{self._arch}.attention.{suffix}"
        num_heads = self.metadata.get(key, self.metadata.get(f"{self._arch}.attention.head_count"))
        num_rows = self._tensors[name].shape[0]
        if not isinstance(num_heads, int) or num_heads < 1 or num_rows % (2 * num_heads):
            raise CheckpointError(f"{self._path}: {key} = {num_heads!r} doesn't fit {name}")
        head_dim = num_rows // num_heads
        assert (rows.start or 0) % head_dim == 0
        pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
        return pairs.transpose(1, 2).reshape(weight.shape)


def hugging_face_name(name: str) -> str:
    """A GGUF tensor's name in Hugging Face checkpoints; unknown names stay."""
    match = _LAYER.fullmatch(name)
    if match and match[2] in _LAYER_NAMES:
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    return _NAMES.get(name, name)


def _num_bytes(tensor: GgufTensor, kind: GGMLQuantizationType) -> int:
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    num_elements = 1
    for size in tensor.shape:
        num_elements *= size
    return num_elements // block_size * block_bytes
