"""Turns one scheduled iteration into tensors, a forward pass and sampled tokens."""

import torch
from torch import Tensor

from fabric.engine.sampler import Sampler, SampleRow
from fabric.engine.sequence_table import SequenceTable
from fabric.models.model import CausalModel
from fabric.scheduler.output import SampledTokens, ScheduledSequence, SchedulerOutput, StepResult
from kernels.ops import Backend


class ModelRunner:
    """Owns a model's KV memory and its sequences' state on one device."""

    def __init__(
        self,
        model: CausalModel,
        backend: Backend,
        kv_cache: Tensor,
        table: SequenceTable,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._backend = backend
        self._kv_cache = kv_cache
        self._table = table
        self._sampler = sampler

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration."""
        self._apply_changes(output)
        if not output.scheduled:
            return StepResult(output.step, ())
        token_ids, batch = self._table.build_batch(output.scheduled)
        sampling = [item for item in output.scheduled if item.num_samples]
        last_tokens = batch.query_start[1:].long() - 1
        chosen = [i for i, item in enumerate(output.scheduled) if item.num_samples]
        hidden = self._model.forward(self._model.embed(token_ids), batch, self._kv_cache)
        logits = self._model.logits(hidden, last_tokens[chosen])
        return StepResult(output.step, self._sample(logits, sampling))

    def _apply_changes(self, output: SchedulerOutput) -> None:
        for key in output.released:
            self._table.release(key)
        if output.copies:
            pairs = torch.tensor(output.copies, dtype=torch.int64)
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
