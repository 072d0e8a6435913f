"""Turns one scheduled iteration into tensors, a forward pass and sampled tokens."""

import torch
from torch import Tensor

from fabric.engine.forward_pass import ForwardPass, KVMemory
from fabric.engine.sampler import Sampler, SampleRow
from fabric.engine.sequence_table import SequenceTable
from fabric.engine.step_inputs import Step
from fabric.scheduler.output import SampledTokens, ScheduledSequence, SchedulerOutput, StepResult
from kernels.ops import Backend


class ModelRunner:
    """Runs one model on one device while its weights are there, and knows its sequences.

    All tensor ranks of the last stage sample, and agree.
    """

    def __init__(
        self,
        forward: ForwardPass,
        backend: Backend,
        memory: KVMemory,
        table: SequenceTable,
        sampler: Sampler,
    ) -> None:
        self._forward = forward
        self._backend = backend
        self._kv_cache = memory.kv_cache
        self._addresses = memory.addresses
        self._table = table
        self._sampler = sampler

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration; nothing is sampled before the last stage."""
        self._apply_changes(output)
        if not output.scheduled:
            return StepResult(output.step, ())
        token_ids, batch = self._table.build_batch(output.scheduled)
        chosen = [i for i, item in enumerate(output.scheduled) if item.num_samples]
        last_tokens = batch.query_start[1:].long() - 1
        if len(chosen) < len(last_tokens):
            last_tokens = last_tokens[chosen]
        logits = self._forward.run(Step(token_ids, batch, last_tokens))
        if logits is None:
            return StepResult(output.step, ())
        return StepResult(output.step, self._sample(logits, [output.scheduled[i] for i in chosen]))

    def forget_weights(self) -> None:
        """Forget all sequences, and what else was made with the weights, as when these go."""
        self._table.clear()
        self._forward.forget_weights()

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
        for row, choice in zip(rows, choices, strict=True):
            row.sequence.sampled = choice.token_ids[0]
        return tuple(
            SampledTokens(item.key, choice.token_ids, choice.logprobs)
            for item, choice in zip(scheduled, choices, strict=True)
        )
