import pytest

from fabric.core.errors import CheckpointError
from fabric.core.sampling import GenerationDefaults
from fabric.models.generation import generation_defaults


def test_nothing_given_means_plain_sampling():
    assert generation_defaults({}) == GenerationDefaults()


def test_do_sample_false_means_greedy():
    assert generation_defaults({"do_sample": False, "temperature": 0.7}).temperature == 0.0


def test_values_are_taken_and_top_k_minus_one_means_all():
    defaults = generation_defaults({"temperature": 0.2, "top_p": 0.9, "top_k": -1, "min_p": None})
    assert defaults == GenerationDefaults(temperature=0.2, top_p=0.9)


def test_end_ids_of_all_files_are_merged_in_order():
    defaults = generation_defaults({"eos_token_id": [7, 8]}, 2, None, [8, 9])
    assert defaults.eos_token_ids == (7, 8, 2, 9)


def test_a_value_that_is_no_number_is_named():
    with pytest.raises(CheckpointError, match="top_p"):
        generation_defaults({"top_p": "high"})
