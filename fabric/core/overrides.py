"""Settings of a command line, put on top of a configuration that is still a tree."""

from collections.abc import Callable

from fabric.core.errors import ConfigError


def put_override(tree: object, override: str, parse: Callable[[str], object]) -> None:
    """Put one setting on top of a tree, in place.

    Args:
        tree: Mappings and lists; mappings that are not there yet are made.
        override: ``a.b=c``; list elements by number.
        parse: Makes a value of the text after the sign; ValueError if it is none.

    Raises:
        ConfigError: The setting has another form, its place is none, or the value can't be parsed.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected a.b=value")
    node = tree
    for key in keys[:-1]:
        node = _child(node, key, override)
    try:
        value = parse(text)
    except ValueError as error:
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
