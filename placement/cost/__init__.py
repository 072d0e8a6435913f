"""Seconds and bytes of a model on a device group: measured, imported, or reckoned."""
