"""Which tensors of a Llama checkpoint make up each parameter, and which part a rank reads."""

from fabric.models.config import ModelConfig
from fabric.models.parameters import Parameter, ParameterGroup
from fabric.models.shard import Shard, whole_model
from fabric.models.weights import Weight, WeightPart

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LINEARS = frozenset({"qkv", "output", "gate_up", "down", "head"})


def weights_of(
    config: ModelConfig, shard: Shard | None = None
) -> tuple[dict[str, Weight], list[dict[str, Weight]]]:
    """A rank's weights by parameter: outside of layers, and each of its layers'.

    A tied head is left out where its embedding is on the same rank.

    Args:
        config: The model.
        shard: The rank's part; None: everything.
    """
    shard = shard or whole_model(config)
    return _top_weights(config, shard), [
        _layer_weights(config, shard, f"model.layers.{layer}.") for layer in shard.layers
    ]


def parameter_groups(config: ModelConfig, shard: Shard) -> tuple[ParameterGroup, ...]:
    """A rank's parameters: outside of layers, and each of its layers', in order of first use.

    A tied head comes right after the embedding that it equals.
    """
    top, layers = weights_of(config, shard)
    if shard.is_last and "head" not in top:
        top = {"embedding": top["embedding"], "head": top["embedding"], **top}
    return tuple(
        tuple(Parameter(name, weight, name in LINEARS) for name, weight in group.items())
        for group in (top, *layers)
    )


def _top_weights(config: ModelConfig, shard: Shard) -> dict[str, Weight]:
    hidden, vocabulary = config.hidden_size, _slice(shard.vocabulary(config))
    top = {}
    if shard.is_first:
        top["embedding"] = Weight.of(
            WeightPart(EMBEDDING, (config.vocab_size, hidden), rows=vocabulary)
        )
    if shard.is_last:
        top["final_norm"] = Weight.of(WeightPart(FINAL_NORM, (hidden,)))
    if shard.is_last and not (config.tie_word_embeddings and shard.is_first):
        name = EMBEDDING if config.tie_word_embeddings else HEAD
        top["head"] = Weight.of(WeightPart(name, (config.vocab_size, hidden), rows=vocabulary))
    return top


def _layer_weights(config: ModelConfig, shard: Shard, prefix: str) -> dict[str, Weight]:
    hidden, head_dim = config.hidden_size, config.head_dim
    output = (hidden, config.num_heads * head_dim)
    gate = (config.intermediate_size, hidden)
    heads = _slice(shard.heads(config), head_dim)
    features = _slice(shard.intermediate(config))
    weights = {
        "input_norm": Weight.of(WeightPart(prefix + "input_layernorm.weight", (hidden,))),
        "qkv": _qkv(config, shard, prefix, "weight", (hidden,)),
        "output": Weight.of(WeightPart(prefix + "self_attn.o_proj.weight", output, columns=heads)),
        "mlp_norm": Weight.of(WeightPart(prefix + "post_attention_layernorm.weight", (hidden,))),
        "gate_up": Weight.of(
            WeightPart(prefix + "mlp.gate_proj.weight", gate, features),
            WeightPart(prefix + "mlp.up_proj.weight", gate, features),
        ),
        "down": Weight.of(
            WeightPart(prefix + "mlp.down_proj.weight", gate[::-1], columns=features)
        ),
    }
    if config.has_qkv_bias:
        weights["qkv_bias"] = _qkv(config, shard, prefix, "bias", ())
    return weights


def _qkv(
    config: ModelConfig, shard: Shard, prefix: str, kind: str, columns: tuple[int, ...]
) -> Weight:
    """The weights or biases of a rank's queries, keys and values, one below the other."""
    head_dim = config.head_dim
    query = (config.num_heads * head_dim, *columns)
    key = (config.num_kv_heads * head_dim, *columns)
    heads = _slice(shard.heads(config), head_dim)
    kv_heads = _slice(shard.kv_heads(config), head_dim)
    return Weight.of(
        WeightPart(f"{prefix}self_attn.q_proj.{kind}", query, heads),
        WeightPart(f"{prefix}self_attn.k_proj.{kind}", key, kv_heads),
        WeightPart(f"{prefix}self_attn.v_proj.{kind}", key, kv_heads),
    )


def _slice(indices: range, size: int = 1) -> slice:
    """The elements of the things with these indices, of ``size`` elements each."""
    return slice(indices.start * size, indices.stop * size)
