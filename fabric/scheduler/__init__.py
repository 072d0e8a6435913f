"""The iteration-level scheduler: pure decisions, no tensors, no clock."""
