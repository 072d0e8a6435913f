"""First come, first served with memory for whole sequences, by what is known of their lengths.

They are what paging is compared with, on :class:`fabric.kv.contiguous.ContiguousKVManager`.

Source: vLLM (Kwon et al., SOSP 2023), section 6.1: Orca (Max), (Pow2) and (Oracle).
"""

from fabric.scheduler.policy import FCFS
from fabric.scheduler.request import SequenceState


class ReserveMax(FCFS):
    """Nothing is known: a sequence may become as long as the model allows."""

    name = "reserve_max"

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len

    def num_reserved_tokens(self, sequence: SequenceState) -> int:
        """The prompt and the longest output, within the model's context."""
        num_output = self._num_output_tokens(sequence.request.source.sampling.max_tokens)
        return min(sequence.num_prompt_tokens + num_output, self._max_model_len)

    def _num_output_tokens(self, max_tokens: int) -> int:
        return self._max_model_len


class ReservePow2(ReserveMax):
    """An output's length is known to a factor of two: a request's ``max_tokens``, rounded up."""

    name = "reserve_pow2"

    def _num_output_tokens(self, max_tokens: int) -> int:
        return 1 << (max_tokens - 1).bit_length()


class ReserveOracle(ReserveMax):
    """An output's length is known: a request's ``max_tokens``."""

    name = "reserve_oracle"

    def _num_output_tokens(self, max_tokens: int) -> int:
        return max_tokens
