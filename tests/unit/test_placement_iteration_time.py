"""Weights are read once in an iteration, whatever it computes."""

import pytest

from fabric.core.profile import Profile
from fabric.scheduler.output import ScheduledSequence, SchedulerOutput
from placement.simulator.iteration_time import iteration_s

# Weights take 10 ms, then each token of a prompt 1 ms, and more where many come before it.
PROFILE = Profile(
    prefill=((1, 0.011), (64, 0.074), (128, 0.148), (256, 0.312)),
    decode=((1, 32, 0.011), (8, 32, 0.019)),
)


def seconds(*items: tuple[int, int]) -> float:
    """Of an iteration of sequences (tokens that have KV, tokens that get it)."""
    scheduled = (ScheduledSequence(key, *item, 1) for key, item in enumerate(items))
    return iteration_s(PROFILE, SchedulerOutput(1, tuple(scheduled)))


def test_prompt_alone_takes_what_was_measured():
    assert seconds((0, 64)) == PROFILE.prefill_s(64)


def test_prompts_together_read_weights_once():
    assert seconds((0, 16), (0, 16), (0, 16)) == pytest.approx(0.010 + 48 * 0.001)


def test_prompt_beside_decodes_adds_only_its_tokens():
    assert seconds(*[(31, 1)] * 4, (0, 32)) == pytest.approx(PROFILE.decode_s(4, 32) + 32 * 0.001)


def test_prompts_together_never_take_longer_than_apart():
    assert seconds((0, 128), (0, 128)) == pytest.approx(2 * PROFILE.prefill_s(128))


def test_later_chunk_takes_longer_by_the_tokens_before_it():
    assert seconds((128, 128)) == pytest.approx(0.312 - 0.148)


def test_later_chunk_reads_weights_too():
    assert seconds((16, 16)) == PROFILE.prefill_s(16)
