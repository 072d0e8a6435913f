"""What a model looks like to a planner: the sizes that times and bytes follow from."""

from dataclasses import dataclass, fields

from fabric.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder.

    ``is_gated``: the feed-forward has gate, up and down matrices, or only up and down.
    ``num_experts`` feed-forwards stand beside each other in a layer, and each token takes
    ``num_active_experts`` of them. ``weight_bits`` and ``kv_bits`` are of each stored number.
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ConfigError(f"{self.name}: {field.name} is {value}; at least 1 is needed")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.name}: num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}"
            )
