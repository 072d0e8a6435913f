"""What the engine asks of every model family."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fabric.models.checkpoint import Checkpoint
from fabric.models.config import ModelConfig
from fabric.models.parameters import WeightSource
from fabric.models.progress import Progress
from fabric.models.shard import Shard, whole_model
from fabric.parallel.group import Group, SoloGroup
from kernels.ops import RaggedBatch


@dataclass(frozen=True, slots=True)
class RankPart:
    """One rank's shard, and the tensor ranks of its stage, that have the rest of its layers.

    ``device`` is what the rank's tensors are on.
    """

    shard: Shard
    group: Group
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def whole(cls, config: ModelConfig) -> "RankPart":
        """The part of a rank that has everything."""
        return cls(whole_model(config), SoloGroup())


class CausalModel(Protocol):
    """A rank's part of a decoder that turns a ragged batch of tokens into logits.

    The first stage embeds, the last one makes logits, and each runs its layers in between on
    what the one before it returned. The tensor ranks of a stage make the same calls.
    """

    config: ModelConfig
    shard: Shard

    def load_weights(self, checkpoint: Checkpoint, progress: Progress) -> int:
        """Take this rank's weights; return the number of elements of the whole model's."""
        ...

    def attach(self, source: WeightSource) -> None:
        """Take weights from here as iterations need them, in place of those before.

        Groups are as in the family's ``parameter_groups``. Each is asked for once, by the thread
        that runs the iteration, which waits for it; :meth:`forward` begins with the first layer
        while others are on their way.
        """
        ...

    def detach(self) -> None:
        """Let go of all weights; until others are attached, iterations raise SourceError."""
        ...

    def kv_cache_shape(self, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """The shape of a KV cache for this rank's layers and KV heads."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """First stage: ``[num_tokens]`` int64 to ``[num_tokens, hidden_size]``."""
        ...

    def forward(self, hidden: Tensor, batch: RaggedBatch, kv_cache: Tensor) -> Tensor:
        """Run this stage's layers, and compute the KV of all tokens in them.

        Args:
            hidden: ``[num_tokens, hidden_size]`` from :meth:`embed` or the stage before, equal
                on all tensor ranks; overwritten.
            batch: Where the tokens and their KV belong.
            kv_cache: See :meth:`kv_cache_shape`; written in place.

        Returns:
            ``[num_tokens, hidden_size]`` for the next stage or :meth:`logits`, equal on all
            tensor ranks; may be ``hidden``.
        """
        ...

    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Last stage: the logits after some tokens, of this rank's part of the vocabulary.

        Args:
            hidden: ``[num_tokens, hidden_size]`` from :meth:`forward`.
            rows: ``[num_rows]`` int64, the tokens whose next token is asked for.

        Returns:
            ``[num_rows, local_vocab_size]`` in the model's dtype, for ``shard.vocabulary(config)``.
        """
        ...
