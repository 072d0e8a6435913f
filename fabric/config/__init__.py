"""The configuration of a fabric: one YAML file, validated here, turned into settings.

This is the composition root: nothing below it reads configuration, and nothing changes it.
"""

from fabric.config.groups import GroupSection
from fabric.config.loading import load_config, parse_config
from fabric.config.plans import load_plan, parse_plan
from fabric.config.sections import ModelSection, Section
from fabric.config.whole import FabricConfig

__all__ = [
    "FabricConfig",
    "GroupSection",
    "ModelSection",
    "Section",
    "load_config",
    "load_plan",
    "parse_config",
    "parse_plan",
]
