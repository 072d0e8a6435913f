"""What the engine asks of every model family."""

from typing import Protocol

from torch import Tensor

from fabric.models.checkpoint import Checkpoint
from fabric.models.config import ModelConfig
from fabric.models.progress import Progress
from kernels.ops import RaggedBatch


class CausalModel(Protocol):
    """A decoder that turns a ragged batch of tokens into logits."""

    config: ModelConfig

    def load_weights(self, checkpoint: Checkpoint, progress: Progress) -> int:
        """Take every weight from the checkpoint, which must match; return their number."""
        ...

    def kv_cache_shape(self, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """The shape of a KV cache for this model."""
        ...

    def forward(
        self, token_ids: Tensor, batch: RaggedBatch, kv_cache: Tensor, logits_rows: Tensor
    ) -> Tensor:
        """Compute the KV of all tokens, and the logits after some of them."""
        ...
