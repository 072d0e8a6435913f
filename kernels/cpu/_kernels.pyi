"""The C++ extension (csrc/bindings.cpp). Addresses are Tensor.data_ptr(), strides in elements."""

def supported_isas() -> list[str]: ...
def emulated_isas() -> list[str]: ...

class DecoderLayer:
    """Tuples here and below are as in csrc/bindings.cpp."""

    def __init__(
        self,
        bf16: bool,
        shape: tuple[float, ...],
        weights: tuple[int | tuple[int, int, int, int], ...],
        index: int,
    ) -> None: ...

class Kernels:
    def __init__(self, isa: str, num_threads: int) -> None: ...
    def packed_rows(self, rows: int) -> int: ...
    def packed_depth(self, bf16: bool, columns: int) -> int: ...
    def pack_linear(
        self, bf16: bool, weight: int, rows: int, columns: int, stride: int, packed: int
    ) -> None: ...
    def linear(
        self,
        bf16: bool,
        x: int,
        rows: int,
        columns: int,
        stride: int,
        weight: int,
        out_columns: int,
        out: int,
    ) -> None: ...
    @staticmethod
    def quantized_shape(bits: int, rows: int, columns: int) -> tuple[int, int]: ...
    def pack_quantized(
        self,
        bf16: bool,
        bits: int,
        weight: int,
        rows: int,
        columns: int,
        stride: int,
        packed: int,
    ) -> None: ...
    def linear_quantized(
        self,
        bf16: bool,
        bits: int,
        x: int,
        rows: int,
        columns: int,
        stride: int,
        weight: int,
        out_columns: int,
        out: int,
    ) -> None: ...
    def rms_norm(
        self,
        bf16: bool,
        x: int,
        rows: int,
        columns: int,
        stride: int,
        residual: int,
        weight: int,
        out: int,
        eps: float,
    ) -> None: ...
    def rope(
        self,
        bf16: bool,
        x: int,
        rows: int,
        columns: int,
        stride: int,
        head_dim: int,
        positions: int,
        cos_sin: int,
        max_len: int,
    ) -> None: ...
    def silu_and_mul(
        self, bf16: bool, gate_up: int, rows: int, columns: int, stride: int, out: int
    ) -> None: ...
    def store_kv(
        self,
        bf16: bool,
        key: int,
        key_stride: int,
        value: int,
        value_stride: int,
        kv_cache: tuple[int, ...],
        layer: int,
        slots: int,
        num_tokens: int,
    ) -> None: ...
    def paged_attention(
        self,
        bf16: bool,
        query: int,
        query_stride: int,
        num_heads: int,
        out: int,
        kv_cache: tuple[int, ...],
        layer: int,
        batch: tuple[int, ...],
        scale: float,
    ) -> None: ...
    def attention_half(
        self,
        layer: DecoderLayer,
        x: int,
        residual: int,
        out: int,
        batch: tuple[int, ...],
        kv_cache: tuple[int, ...],
    ) -> None: ...
    def mlp_half(
        self, layer: DecoderLayer, x: int, residual: int, out: int, num_tokens: int
    ) -> None: ...
    def run_layers(
        self,
        layers: list[DecoderLayer],
        hidden: int,
        batch: tuple[int, ...],
        kv_cache: tuple[int, ...],
    ) -> None: ...
    def copy_blocks(
        self,
        source: int,
        num_source_blocks: int,
        source_stride_bytes: int,
        target: int,
        num_target_blocks: int,
        target_stride_bytes: int,
        block_bytes: int,
        pairs: int,
        num_pairs: int,
    ) -> None: ...
