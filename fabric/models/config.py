"""What a model looks like, from a Hugging Face config.json or from GGUF metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from fabric.core.errors import CheckpointError
from fabric.models.rope_config import RopeConfig

DTYPES = ("float32", "bfloat16", "float16")
GGUF_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
WITH_QKV_BIAS = ("Qwen2ForCausalLM",)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a decoder; ``dtype`` is that of the stored weights."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases, which no configuration file says."""
        return self.architecture in WITH_QKV_BIAS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise CheckpointError(f"{field.name} is {value}; at least 1 is needed")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim {self.head_dim} is odd; RoPE needs pairs")
        if self.dtype not in DTYPES:
            raise CheckpointError(
                f"dtype {self.dtype!r} is not supported; supported: {', '.join(DTYPES)}"
            )

    @classmethod
    def from_hf(cls, raw: Mapping[str, object]) -> "ModelConfig":
        """Read a config.json, in transformers 4's or 5's spelling.

        Raises:
            CheckpointError: A value is missing, malformed, or asks for what isn't supported.
        """
        _refuse_unsupported(raw)
        num_heads = _int(raw, "num_attention_heads")
        hidden_size = _int(raw, "hidden_size")
        return cls(
            architecture=hf_architecture(raw),
            vocab_size=_int(raw, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_int(raw, "intermediate_size"),
            num_layers=_int(raw, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_int(raw, "num_key_value_heads", num_heads),
            head_dim=_int(raw, "head_dim", hidden_size // max(num_heads, 1)),
            rms_norm_eps=_float(raw, "rms_norm_eps", 1e-6),
            rope=RopeConfig.from_hf(raw),
            max_position_embeddings=_int(raw, "max_position_embeddings", 2048),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        )

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, object],
        is_tied: bool,
        frequency_factors: tuple[float, ...] = (),
    ) -> "ModelConfig":
        """Read the metadata of a GGUF file.

        Args:
            metadata: Key to value.
            is_tied: Whether the file has no output.weight.
            frequency_factors: The rope_freqs.weight tensor, or ().

        Raises:
            CheckpointError: A value is missing, malformed, or asks for what isn't supported.
        """
        arch = str(metadata.get("general.architecture", "unknown"))
        num_heads = _int(metadata, f"{arch}.attention.head_count")
        hidden_size = _int(metadata, f"{arch}.embedding_length")
        head_dim = _int(metadata, f"{arch}.attention.key_length", hidden_size // max(num_heads, 1))
        if _int(metadata, f"{arch}.rope.dimension_count", head_dim) != head_dim:
            raise CheckpointError(f"{arch}.rope.dimension_count differs from head_dim {head_dim}")
        tokens = metadata.get("tokenizer.ggml.tokens")
        num_tokens = len(tokens) if isinstance(tokens, list) else None
        return cls(
            architecture=GGUF_ARCHITECTURES.get(arch, arch),
            vocab_size=_int(metadata, f"{arch}.vocab_size", num_tokens),
            hidden_size=hidden_size,
            intermediate_size=_int(metadata, f"{arch}.feed_forward_length"),
            num_layers=_int(metadata, f"{arch}.block_count"),
            num_heads=num_heads,
            num_kv_heads=_int(metadata, f"{arch}.attention.head_count_kv", num_heads),
            head_dim=head_dim,
            rms_norm_eps=_float(metadata, f"{arch}.attention.layer_norm_rms_epsilon", 1e-6),
            rope=RopeConfig.from_gguf(metadata, arch, frequency_factors),
            max_position_embeddings=_int(metadata, f"{arch}.context_length"),
            tie_word_embeddings=is_tied,
            dtype="bfloat16",
        )


def hf_architecture(raw: Mapping[str, object]) -> str:
    """The first of config.json's ``architectures``, or "unknown"."""
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "unknown"


def _refuse_unsupported(raw: Mapping[str, object]) -> None:
    for key in ("attention_bias", "mlp_bias", "quantization_config", "use_sliding_window"):
        if raw.get(key):
            raise CheckpointError(f"config.json: {key} = {raw[key]!r} is not supported")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("config.json: partial_rotary_factor other than 1 is not supported")
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(
            f"config.json: hidden_act {activation!r} is not supported; supported: silu"
        )


def _int(raw: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"model configuration: {key} is {value!r}; an integer is needed")
    return value


def _float(raw: Mapping[str, object], key: str, default: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise CheckpointError(f"model configuration: {key} is {value!r}; it must be positive")
    return float(value)
