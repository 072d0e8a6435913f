"""Bookkeeping of paged KV memory: ids and counts, no tensors."""
