"""Figures of what the planner answers; these need matplotlib, which takes long to load."""
