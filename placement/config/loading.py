"""Reads the planner's input.

The configuration of ``fabric serve`` is read by fabric.config, which needs more than a planner's
installation has.
"""

from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fabric.core.errors import ConfigError
from fabric.core.overrides import put_override
from placement.config.schema import PlanInput
from placement.config.values import FOLDER, UNKNOWN_KEY


def load_input(path: Path, overrides: tuple[str, ...] = ()) -> PlanInput:
    """Read and check an input file.

    Args:
        path: A YAML file; relative paths in it are relative to its folder.
        overrides: ``a.b=c`` settings put on top; list elements by number, values in YAML.

    Raises:
        ConfigError: The file can't be read or parsed, or keys or values are wrong; names each.
    """
    tree = read_yaml(path)
    for override in overrides:
        put_override(tree, override, _value)
    return parse_input(tree, str(path), path.parent)


def parse_input(tree: object, origin: str, folder: Path = Path()) -> PlanInput:
    """Check an input that is already a tree of mappings and lists.

    Args:
        tree: What the file holds.
        origin: Where it comes from, for errors.
        folder: What relative paths are relative to.

    Raises:
        ConfigError: Keys or values are wrong; names the path of each, and what is allowed.
    """
    try:
        return PlanInput.model_validate(tree, context={FOLDER: folder})
    except ValidationError as error:
        raise ConfigError(f"{origin}: {problems_of(error)}") from error


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: The file can't be read, or holds something else.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    return _parse_yaml(text, str(path))


def problems_of(error: ValidationError) -> str:
    """What is wrong with each key, in one line."""
    return "; ".join(_problem(item) for item in error.errors())


def _problem(item: ErrorDetails) -> str:
    path = [str(part) for part in item["loc"]]
    if item["type"] == UNKNOWN_KEY:
        path.append(item["ctx"]["key"])
    message = item["msg"].removeprefix("Value error, ")
    is_said = item["type"] in ("missing", "value_error", UNKNOWN_KEY)
    value = "" if is_said else f" (is {item['input']!r:.80})"
    # What is wrong between sections says itself where.
    return f"{'.'.join(path)}: {message}{value}" if path else f"{message}{value}"


def _parse_yaml(text: str, origin: str) -> dict[str, object]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{origin}: not YAML: {problem}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: holds {type(tree).__name__}; a mapping is needed")
    return tree


def _value(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
