"""Computes iterations on a worker's device, from tensors that were built on the host."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.decode_graphs import DecodeGraphs, Recorder
from fabric.engine.step_inputs import Step, StepInputs
from fabric.models.model import CausalModel
from fabric.parallel.group import Group


@dataclass(frozen=True, slots=True)
class KVMemory:
    """A model's view of the KV memory, and where in it its blocks begin.

    ``padding`` is where a block begins that no sequence has.
    """

    kv_cache: Tensor
    addresses: BlockAddresses
    padding: int = 0


class ForwardPass:
    """Runs a rank's part of a model while its weights are there.

    ``pipeline`` are the ranks at this one's place in every stage: activations come from the one
    before and go to the one after. With a recorder, decodes are recorded and replayed.
    """

    def __init__(
        self,
        model: CausalModel,
        memory: KVMemory,
        inputs: StepInputs,
        pipeline: Group,
        recorder: Recorder | None = None,
    ) -> None:
        self._model = model
        self._kv_cache = memory.kv_cache
        self._inputs = inputs
        self._pipeline = pipeline
        self._graphs: DecodeGraphs | None = None
        if recorder is not None:
            block_size = memory.kv_cache.shape[4]
            self._graphs = DecodeGraphs(
                self._compute_logits, inputs, recorder, memory.padding, block_size
            )

    def run(self, step: Step) -> Tensor | None:
        """Compute an iteration that was built on the host.

        Returns:
            The logits ``[num_rows, local_vocab_size]`` of the step's rows, in the model's dtype on
            the device, until the next call; None if there are none, as before the last stage.
        """
        if self._graphs is not None and (logits := self._graphs.run(step)) is not None:
            return self._chosen(logits, step.rows)
        there = self._inputs.put(step)
        hidden = self._compute(there)
        if not self._model.shard.is_last:
            self._pipeline.send(hidden, self._pipeline.rank + 1)
            return None
        return self._model.logits(hidden, there.rows) if len(step.rows) else None

    def forget_weights(self) -> None:
        """Forget what was recorded, as when the model's weights go."""
        if self._graphs is not None:
            self._graphs.clear()

    def _compute_logits(self, step: Step) -> Tensor:
        return self._model.logits(self._compute(step), step.rows)

    def _compute(self, step: Step) -> Tensor:
        return self._model.forward(self._stage_input(step), step.batch, self._kv_cache)

    def _stage_input(self, step: Step) -> Tensor:
        if self._model.shard.is_first:
            return self._model.embed(step.token_ids)
        shape = (len(step.token_ids), self._model.config.hidden_size)
        hidden = torch.empty(shape, dtype=self._kv_cache.dtype, device=self._kv_cache.device)
        self._pipeline.recv(hidden, self._pipeline.rank - 1)
        return hidden

    def _chosen(self, logits: Tensor, rows: Tensor) -> Tensor | None:
        """Of a decode's logits those that are asked for: as a rule, all."""
        if len(rows) == len(logits):
            return logits
        return logits.index_select(0, rows.to(logits.device)) if len(rows) else None
