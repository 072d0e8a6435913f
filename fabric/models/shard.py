"""Which part of a model a rank has: a range of layers, and a share of each layer's heads.

Source: Megatron-LM (Shoeybi et al., 2019) for the shares; stages: GPipe (Huang et al., 2019).
"""

from dataclasses import dataclass

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a model.

    ``is_first`` ranks also have a share of the embedding, ``is_last`` ones of the head.
    """

    tensor_rank: int
    tensor_size: int
    first_layer: int
    num_layers: int
    is_first: bool
    is_last: bool

    @property
    def layers(self) -> range:
        """The layers that this rank's stage has."""
        return range(self.first_layer, self.first_layer + self.num_layers)

    def heads(self, config: ModelConfig) -> range:
        """The query heads that this rank computes."""
        return self._share(config.num_heads)

    def kv_heads(self, config: ModelConfig) -> range:
        """The KV heads that those query heads attend to; ranks may have to repeat one."""
        if self.tensor_size <= config.num_kv_heads:
            return self._share(config.num_kv_heads)
        head = self.tensor_rank * config.num_kv_heads // self.tensor_size
        return range(head, head + 1)

    def intermediate(self, config: ModelConfig) -> range:
        """The MLP's hidden features that this rank computes."""
        return self._share(config.intermediate_size)

    def vocabulary(self, config: ModelConfig) -> range:
        """The token ids whose embedding and logits this rank has, if its stage has any."""
        return self._share(config.vocab_size)

    def kv_bytes_per_token(self, config: ModelConfig, element_bytes: int) -> int:
        """Bytes of KV that this rank keeps for each token, repeated KV heads included."""
        num_elements = 2 * len(self.kv_heads(config)) * config.head_dim
        return self.num_layers * num_elements * element_bytes

    def _share(self, total: int) -> range:
        rank, size = self.tensor_rank, self.tensor_size
        return range(total * rank // size, total * (rank + 1) // size)


def whole_model(config: ModelConfig) -> Shard:
    """The shard of a rank that has everything."""
    return Shard(0, 1, 0, config.num_layers, is_first=True, is_last=True)


def shard_of(
    config: ModelConfig,
    parallel: ParallelConfig,
    stage: int,
    tensor_rank: int,
    layer_split: tuple[int, ...] | None = None,
) -> Shard:
    """Cut a model and return one rank's part.

    Args:
        config: The model.
        parallel: How many stages there are, and ranks in each.
        stage: Pipeline stage of the rank, from 0.
        tensor_rank: Number of the rank in its stage, from 0.
        layer_split: Layers of each stage; None: see :func:`even_layer_split`.

    Raises:
        ConfigError: The model can't be cut so; names what doesn't divide and what would.
    """
    _check_tensor_size(config, parallel.tensor)
    split = layer_split or even_layer_split(config.num_layers, parallel.pipeline)
    if len(split) != parallel.pipeline or sum(split) != config.num_layers or min(split) < 1:
        raise ConfigError(
            f"the layer split is {list(split)}; {parallel.pipeline} positive numbers that add up "
            f"to the model's {config.num_layers} layers are needed"
        )
    return Shard(
        tensor_rank=tensor_rank,
        tensor_size=parallel.tensor,
        first_layer=sum(split[:stage]),
        num_layers=split[stage],
        is_first=stage == 0,
        is_last=stage == parallel.pipeline - 1,
    )


def even_layer_split(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Layers of each stage, as even as can be.

    What is left over goes to inner stages first, and to the last one last: embedding and head
    make the ends heavier, the head above all.

    Raises:
        ConfigError: There are more stages than layers.
    """
    if num_stages > num_layers:
        raise ConfigError(
            f"parallel.pipeline is {num_stages}; the model's {num_layers} layers allow 1 to "
            f"{num_layers}"
        )
    split = [num_layers // num_stages] * num_stages
    by_lightness = [*range(1, num_stages - 1), 0, num_stages - 1]
    for stage in by_lightness[: num_layers % num_stages]:
        split[stage] += 1
    return tuple(split)


def _check_tensor_size(config: ModelConfig, size: int) -> None:
    allowed = [n for n in range(1, config.num_heads + 1) if _fits(config, n)]
    if size not in allowed:
        raise ConfigError(
            f"parallel.tensor is {size}; the model's {config.num_heads} heads and "
            f"{config.num_kv_heads} KV heads allow {', '.join(map(str, allowed))}"
        )


def _fits(config: ModelConfig, size: int) -> bool:
    num_kv_heads = config.num_kv_heads
    shares_kv_heads = num_kv_heads % size == 0 or size % num_kv_heads == 0
    return config.num_heads % size == 0 and shares_kv_heads
