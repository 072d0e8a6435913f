"""Offline planning: cost model, placement search and simulation."""
