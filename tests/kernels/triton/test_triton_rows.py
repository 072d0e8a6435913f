"""Norms, rope, activation, storing keys and values: the tests of the other backends."""

from tests.kernels.test_cache import (
    test_attention_ignores_table_entries_past_the_context,
    test_attention_refuses_a_batch_that_does_not_fit,
    test_copy_blocks_refuses_blocks_of_another_shape,
    test_slot_outside_the_cache_is_refused,
    test_store_kv_writes_only_its_slots,
)
from tests.kernels.test_layers import (
    test_norms_equal_the_reference,
    test_rope_equals_the_reference,
    test_silu_and_mul_equals_the_reference,
    test_silu_keeps_nan_and_infinity,
)

__all__ = [
    "test_attention_ignores_table_entries_past_the_context",
    "test_attention_refuses_a_batch_that_does_not_fit",
    "test_copy_blocks_refuses_blocks_of_another_shape",
    "test_norms_equal_the_reference",
    "test_rope_equals_the_reference",
    "test_silu_and_mul_equals_the_reference",
    "test_silu_keeps_nan_and_infinity",
    "test_slot_outside_the_cache_is_refused",
    "test_store_kv_writes_only_its_slots",
]
