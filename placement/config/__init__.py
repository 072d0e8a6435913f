"""The planner's input: one YAML file, validated here; nothing changes it after loading."""

from placement.config.loading import load_input, parse_input
from placement.config.schema import PlanInput

__all__ = ["PlanInput", "load_input", "parse_input"]
