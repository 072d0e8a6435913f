"""Takes values out of parsed JSON, with errors that name the place."""

import json

from fabric.core.errors import ConfigError


def parse_json(text: str, origin: str) -> dict[str, object]:
    """A file's content, a JSON object.

    Raises:
        ConfigError: It is something else; begins with ``origin``.
    """
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error
    return mapping_at(tree, origin)


def count_at(key: str, where: str) -> int:
    """A whole number above 0 that a key says.

    Raises:
        ConfigError: It says something else.
    """
    if not key.isdecimal() or int(key) < 1:
        raise ConfigError(f"{where}: the key {key!r} is no positive whole number")
    return int(key)


def mapping_at(tree: object, where: str) -> dict[str, object]:
    """A JSON object.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} is {str(tree)[:40]!r}; a JSON object is needed")
    return tree


def number_at(value: object, where: str) -> float:
    """A number.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} is {value!r}; a number is needed")
    return float(value)


def positive_at(value: object, where: str) -> float:
    """A number above 0.

    Raises:
        ConfigError: It is something else.
    """
    number = number_at(value, where)
    if number <= 0:
        raise ConfigError(f"{where} is {value!r}; a positive number is needed")
    return number
