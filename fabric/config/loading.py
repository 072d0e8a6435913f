"""Reads configuration files."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from fabric.config.whole import FabricConfig
from fabric.core.errors import ConfigError
from fabric.core.overrides import put_override


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> FabricConfig:
    """Read and check a configuration file.

    Args:
        path: A YAML file.
        overrides: ``a.b=c`` settings put on top; list elements by number, values in YAML.

    Raises:
        ConfigError: The file can't be read or parsed, or keys or values are wrong; names each.
    """
    tree = parse_yaml(read_text(path), str(path))
    for override in overrides:
        put_override(tree, override, _value)
    return parse_config(tree, str(path))


def parse_config(tree: object, origin: str) -> FabricConfig:
    """Check a configuration that is already a tree of mappings and lists.

    Raises:
        ConfigError: Keys or values are wrong; names the path of each.
    """
    try:
        return FabricConfig.model_validate(tree)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            + ("" if item["type"] in ("missing", "value_error") else f" (is {item['input']!r:.80})")
            for item in error.errors()
        ]
        raise ConfigError(f"{origin}: " + "; ".join(problems)) from error


def read_text(path: Path) -> str:
    """What a file holds.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error


def parse_yaml(text: str, origin: str) -> dict[str, object]:
    """A mapping in YAML.

    Raises:
        ConfigError: It is something else.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: holds {type(tree).__name__}; a mapping is needed")
    return tree


def _value(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
