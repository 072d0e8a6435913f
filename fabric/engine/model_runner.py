"""Turns one scheduled iteration into tensors, a forward pass and sampled tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.sampler import Sampler, SampleRow
from fabric.engine.sequence_table import SequenceTable
from fabric.models.model import CausalModel
from fabric.parallel.group import Group
from fabric.scheduler.output import SampledTokens, ScheduledSequence, SchedulerOutput, StepResult
from kernels.ops import Backend


@dataclass(frozen=True, slots=True)
class KVMemory:
    """A model's view of the KV memory, and where in it its blocks begin."""

    kv_cache: Tensor
    addresses: BlockAddresses


class ModelRunner:
    """Runs one model on one device while its weights are there, and knows its sequences.

    ``pipeline`` are the ranks at this one's place in every stage: activations come from the one
    before and go to the one after. All tensor ranks of the last stage sample, and agree.
    """

    def __init__(
        self,
        model: CausalModel,
        backend: Backend,
        memory: KVMemory,
        table: SequenceTable,
        sampler: Sampler,
        pipeline: Group,
    ) -> None:
        self._model = model
        self._backend = backend
        self._kv_cache = memory.kv_cache
        self._addresses = memory.addresses
        self._table = table
        self._sampler = sampler
        self._pipeline = pipeline

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration; nothing is sampled before the last stage."""
        self._apply_changes(output)
        if not output.scheduled:
            return StepResult(output.step, ())
        token_ids, batch = self._table.build_batch(output.scheduled)
        hidden = self._model.forward(self._stage_input(token_ids), batch, self._kv_cache)
        if not self._model.shard.is_last:
            self._pipeline.send(hidden, self._pipeline.rank + 1)
            return StepResult(output.step, ())
        sampling = [item for item in output.scheduled if item.num_samples]
        last_tokens = batch.query_start[1:].long() - 1
        chosen = [i for i, item in enumerate(output.scheduled) if item.num_samples]
        logits = self._model.logits(hidden, last_tokens[chosen])
        return StepResult(output.step, self._sample(logits, sampling))

    def forget_sequences(self) -> None:
        """Forget all sequences, as when the model's weights go."""
        self._table.clear()

    def _stage_input(self, token_ids: Tensor) -> Tensor:
        if self._model.shard.is_first:
            return self._model.embed(token_ids)
        hidden = torch.empty(
            (len(token_ids), self._model.config.hidden_size), dtype=self._kv_cache.dtype
        )
        self._pipeline.recv(hidden, self._pipeline.rank - 1)
        return hidden

    def _apply_changes(self, output: SchedulerOutput) -> None:
        for key in output.released:
            self._table.release(key)
        if output.copies:
            pairs = torch.from_numpy(self._addresses.steps(output.copies))
            self._backend.copy_blocks(self._kv_cache, self._kv_cache, pairs)
        for new in output.new_sequences:
            self._table.add(new)
        for item in output.scheduled:
            self._table.update(item)

    def _sample(
        self, logits: Tensor, scheduled: list[ScheduledSequence]
    ) -> tuple[SampledTokens, ...]:
        if not scheduled:
            return ()
        rows = [
            SampleRow(
                sequence := self._table[item.key],
                self._table.prompt_tokens(sequence),
                self._table.output_tokens(sequence),
                item.num_samples,
            )
            for item in scheduled
        ]
        choices = self._sampler.sample(logits, rows)
        return tuple(
            SampledTokens(item.key, choice.token_ids, choice.logprobs)
            for item, choice in zip(scheduled, choices, strict=True)
        )
