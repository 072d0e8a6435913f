"""Reads configuration files."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from fabric.config.whole import FabricConfig
from fabric.core.errors import ConfigError


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
        _override(tree, override)
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


def _override(tree: object, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected a.b=value")
    node = tree
    for key in keys[:-1]:
        node = _child(node, key, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not YAML") from error
    if isinstance(node, dict):
        node[keys[-1]] = value
    elif isinstance(node, list) and keys[-1].isdecimal() and int(keys[-1]) < len(node):
        node[int(keys[-1])] = value
    else:
        raise ConfigError(f"--set {override}: {keys[-1]!r} is not a place in the file")


def _child(node: object, key: str, override: str) -> object:
    if isinstance(node, dict):
        return node.setdefault(key, {})
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    raise ConfigError(f"--set {override}: {key!r} is not a place in the file")
