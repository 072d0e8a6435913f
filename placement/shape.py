"""What a model looks like to a planner: the sizes that times and bytes follow from."""

from dataclasses import dataclass, fields
from typing import Literal

from fabric.core.errors import ConfigError

Bias = Literal["none", "qkv", "all"]
BITS = (4, 8, 16, 32)
OUTER_BITS = 16


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder.

    ``is_gated``: the feed-forward has gate, up and down matrices, or only up and down.
    ``num_experts`` feed-forwards stand beside each other in a layer, and each token takes
    ``num_active_experts`` of them. ``weight_bits`` and ``kv_bits`` are of each stored number.

    ``bias`` says which matrices have one: none, those of queries, keys and values, or all; with
    "all", norms have one too. ``has_qk_norm``: the heads of queries and keys are normed.
    ``num_positions`` are learned position embeddings; 0: positions need no weights.
    ``num_layer_norms`` are those of a layer: 1 if attention and feed-forward stand side by side.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    is_gated: bool = True
    is_tied: bool = False
    num_experts: int = 1
    num_active_experts: int = 1
    weight_bits: int = 16
    kv_bits: int = 16
    bias: Bias = "none"
    has_qk_norm: bool = False
    has_embedding_norm: bool = False
    num_positions: int = 0
    num_layer_norms: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "num_positions" else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ConfigError(
                    f"{self.name}: {field.name} is {value}; at least {least} is needed"
                )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.name}: num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}"
            )
        if self.num_active_experts > self.num_experts:
            raise ConfigError(
                f"{self.name}: num_active_experts is {self.num_active_experts} of num_experts "
                f"{self.num_experts}"
            )
        for name in ("weight_bits", "kv_bits"):
            if getattr(self, name) not in BITS:
                allowed = ", ".join(map(str, BITS))
                raise ConfigError(f"{self.name}: {name} is {getattr(self, name)}; one of {allowed}")

    @property
    def num_parameters(self) -> int:
        """Numbers that the checkpoint holds, a tied head counted once."""
        layers = self.num_layers * (self.layer_matrices + self.layer_vectors)
        return layers + self.embedding_numbers + self.head_numbers + self.outer_vectors

    @property
    def num_active_parameters(self) -> int:
        """Those that a token passes through: of a layer's experts, only the active ones."""
        idle = (self.num_experts - self.num_active_experts) * self.expert_matrices
        return self.num_parameters - self.num_layers * idle

    @property
    def attention_matrices(self) -> int:
        """Numbers in a layer's projections to queries, keys and values, and of the output."""
        width = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.hidden_size * width * self.head_dim

    @property
    def expert_matrices(self) -> int:
        """Numbers in one feed-forward."""
        return (3 if self.is_gated else 2) * self.hidden_size * self.intermediate_size

    @property
    def layer_matrices(self) -> int:
        """Numbers in a layer's matrices, those of all experts and of their router included."""
        return self.attention_matrices + self.num_experts * self.expert_matrices + self.router

    @property
    def active_layer_matrices(self) -> int:
        """Numbers in a layer's matrices that one token is multiplied with."""
        active = self.num_active_experts * self.expert_matrices
        return self.attention_matrices + active + self.router

    @property
    def router(self) -> int:
        """Numbers in the matrix that chooses experts."""
        return self.hidden_size * self.num_experts if self.num_experts > 1 else 0

    @property
    def layer_vectors(self) -> int:
        """Numbers in a layer's norms and biases."""
        with_bias = self.bias == "all"
        norms = self.num_layer_norms * self.hidden_size * (2 if with_bias else 1)
        norms += 2 * self.head_dim if self.has_qk_norm else 0
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        ups = (2 if self.is_gated else 1) * self.intermediate_size
        feed_forward = self.num_experts * (ups + self.hidden_size)
        biases = {"none": 0, "qkv": qkv, "all": qkv + self.hidden_size + feed_forward}
        return norms + biases[self.bias]

    @property
    def embedding_numbers(self) -> int:
        """Numbers in the embeddings of tokens and positions."""
        return (self.vocab_size + self.num_positions) * self.hidden_size

    @property
    def head_numbers(self) -> int:
        """Numbers in a head of its own."""
        return 0 if self.is_tied else self.vocab_size * self.hidden_size

    @property
    def outer_vectors(self) -> int:
        """Numbers in norms outside of the layers: the last one, and one after the embedding."""
        width = self.hidden_size * (2 if self.bias == "all" else 1)
        return width * (2 if self.has_embedding_norm else 1)

    @property
    def outer_bits(self) -> int:
        """Bits of what is not in layers' matrices: checkpoints of fewer bits leave it at 16."""
        return max(self.weight_bits, OUTER_BITS)

    @property
    def kv_token_bytes(self) -> int:
        """KV bytes of one token on all devices together, where no head is repeated."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.kv_bits // 8
