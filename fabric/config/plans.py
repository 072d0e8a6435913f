"""Placement plans as files: the ``models`` and ``groups`` of a configuration, by themselves."""

from pathlib import Path

from fabric.config.loading import parse_config, parse_yaml, read_text
from fabric.config.whole import FabricConfig
from fabric.core.errors import ConfigError

PLAN_KEYS = ("models", "groups")


def load_plan(config: FabricConfig, path: Path) -> FabricConfig:
    """The configuration with the models and groups of a plan's file instead of its own.

    Raises:
        ConfigError: The file can't be read, or is no plan; names what is wrong.
    """
    return parse_plan(config, read_text(path), str(path))


def parse_plan(config: FabricConfig, text: str, origin: str) -> FabricConfig:
    """The configuration with the models and groups of a plan instead of its own.

    Args:
        config: What the plan leaves as it is.
        text: YAML with the keys ``models`` and ``groups``.
        origin: Where it comes from, for errors.

    Raises:
        ConfigError: It is no plan; names the path of each wrong key.
    """
    plan = parse_yaml(text, origin)
    if unknown := [str(key) for key in plan if key not in PLAN_KEYS]:
        raise ConfigError(
            f"{origin}: {', '.join(unknown)}: not a part of a plan, which has models and groups"
        )
    rest = config.model_dump(mode="json", exclude=set(PLAN_KEYS))
    return parse_config({**rest, **plan}, origin)
