"""Ranks as threads, and the parts of a model that they have."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fabric.core.plan import ParallelConfig
from fabric.engine.vocab_parallel import VocabShard
from fabric.models.checkpoint import Checkpoint
from fabric.models.config import ModelConfig
from fabric.models.llama import LlamaForCausalLM
from fabric.models.model import RankPart
from fabric.models.progress import NoProgress
from fabric.models.shard import shard_of
from fabric.parallel.group import Group
from fabric.parallel.local import LocalGroup, local_groups
from kernels.dispatch import select_backend
from tests.unit.tiny_models import OneSequence

T = TypeVar("T")


def on_ranks(size: int, work: Callable[[LocalGroup], T]) -> list[T]:
    """What each of some ranks returns; an error of one ends the others."""

    def run(group: LocalGroup) -> T:
        torch.set_num_threads(1)
        try:
            return work(group)
        except BaseException:
            group.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, group) for group in local_groups(size)]
        errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((e for e in errors if type(e).__name__ != "GroupAborted"), errors[0])
    return [future.result() for future in futures]


@dataclass(frozen=True)
class Cut:
    """How a test cuts a model."""

    tensor: int = 1
    pipeline: int = 1
    layer_split: tuple[int, ...] | None = None

    def stages(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        group: Group,
        dtype: torch.dtype = torch.float32,
    ) -> list[LlamaForCausalLM]:
        """One tensor rank's part of every stage."""
        models = []
        for stage in range(self.pipeline):
            parallel = ParallelConfig(self.pipeline, self.tensor)
            shard = shard_of(config, parallel, stage, group.rank, self.layer_split)
            backend = select_backend("cpu", num_threads=1)
            model = LlamaForCausalLM(config, backend, dtype, 128, RankPart(shard, group))
            model.load_weights(checkpoint, NoProgress())
            models.append(model)
        return models

    def run(
        self, config: ModelConfig, checkpoint: Checkpoint, prompt: list[int], num_tokens: int
    ) -> tuple[Tensor, list[int]]:
        """A prompt's logits over the whole vocabulary, and the likeliest tokens after it."""

        def work(group: LocalGroup) -> tuple[Tensor, list[int]]:
            stages = self.stages(config, checkpoint, group)
            vocabulary = stages[-1].shard.vocabulary(config)
            vocab = VocabShard(group, vocabulary, config.vocab_size)
            logits = OneSequence(stages, torch.float32).logits(prompt)
            return logits, OneSequence(stages, torch.float32).greedy(prompt, num_tokens, vocab)

        results = on_ranks(self.tensor, work)
        assert all(tokens == results[0][1] for _, tokens in results)
        return torch.cat([logits for logits, _ in results], dim=1), results[0][1]
