"""Frozen dataclasses as plain msgpack arrays: encoded by field order, checked on decode by type.

A codec is built from a type's annotations: int, float, str, bytes, bool, a StrEnum, ``X | None``,
``tuple[X, ...]``, ``tuple[X, Y]`` and dataclasses of these. Nothing else is representable, so
nothing else can be decoded; there is no way to name a class on the wire.
"""

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from fabric.core.errors import ProtocolError

T = TypeVar("T")
Convert = Callable[[Any], Any]


class Codec(Generic[T]):
    """Turns values of one type into lists of plain values, and back."""

    def __init__(self, kind: type[T]) -> None:
        self.encode: Callable[[T], object] = _encoder(kind) or _same
        self.decode: Callable[[object], T] = _decoder(kind)


def _same(value: object) -> object:
    return value


def _encoder(kind: Any) -> Convert | None:
    """A function that makes a value plain; None where it is plain already."""
    arguments = get_args(kind)
    if _is_optional(kind):
        inner = _encoder(_without_none(kind))
        return inner and (lambda value: None if value is None else inner(value))
    if get_origin(kind) is tuple and arguments[1:] == (...,):
        item = _encoder(arguments[0])
        return item and (lambda values: [item(value) for value in values])
    if get_origin(kind) is tuple:
        items = [_encoder(argument) or _same for argument in arguments]
        return lambda values: [item(v) for item, v in zip(items, values, strict=True)]
    if is_dataclass(kind):
        return _record_encoder(kind)
    return None


def _record_encoder(kind: Any) -> Convert:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    converts = [(i, c) for i, name in enumerate(names) if (c := _encoder(hints[name]))]

    def encode(record: Any) -> list[Any]:
        values = [getattr(record, name) for name in names]
        for index, convert in converts:
            values[index] = convert(values[index])
        return values

    return encode


def _decoder(kind: Any) -> Convert:
    arguments = get_args(kind)
    if _is_optional(kind):
        inner = _decoder(_without_none(kind))
        return lambda value: None if value is None else inner(value)
    if get_origin(kind) is tuple and arguments == (int, ...):
        return _integers
    if get_origin(kind) is tuple and arguments[1:] == (...,):
        item = _decoder(arguments[0])
        return lambda values: tuple([item(value) for value in _array(values)])
    if get_origin(kind) is tuple:
        return _array_decoder([(str(i), a) for i, a in enumerate(arguments)], _pack)
    if is_dataclass(kind):
        return _record_decoder(kind)
    return _scalar_decoder(kind)


def _record_decoder(kind: Any) -> Convert:
    hints = get_type_hints(kind)
    return _array_decoder([(field.name, hints[field.name]) for field in fields(kind)], kind)


def _array_decoder(items: list[tuple[str, Any]], build: Callable[..., Any]) -> Convert:
    """Decodes an array of exactly these (name, type) elements and builds a value of them."""
    names = [name for name, _ in items]
    decoders = [_decoder(kind) for _, kind in items]

    def decode(values: Any) -> Any:
        if type(values) is not list or len(values) != len(decoders):
            found = f"{len(values)} elements" if type(values) is list else type(values).__name__
            raise ProtocolError(f": {len(decoders)} elements expected, found {found}")
        try:
            return build(*[convert(v) for convert, v in zip(decoders, values, strict=True)])
        except ProtocolError:
            raise _located(names, decoders, values) from None

    return decode


def _located(names: list[str], decoders: list[Convert], values: list[Any]) -> ProtocolError:
    """The error again, with the name of the element that it is in."""
    for name, convert, value in zip(names, decoders, values, strict=True):
        try:
            convert(value)
        except ProtocolError as error:
            return ProtocolError(f".{name}{error.message}")
    raise AssertionError("an element that failed to decode decodes now")


def _scalar_decoder(kind: Any) -> Convert:
    def decode(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise ProtocolError(f": {kind.__name__} expected, found {type(value).__name__}")

    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _enum_decoder(kind)
    if kind is float:
        # An int where a float is declared is a float that its owner wrote as, say, 0.
        return lambda value: float(value) if type(value) is int else decode(value)
    if kind in (int, str, bytes, bool):
        return decode
    raise TypeError(f"{kind} has no representation on the link")


def _enum_decoder(kind: type[StrEnum]) -> Convert:
    members = {member.value: member for member in kind}

    def decode(value: Any) -> StrEnum:
        if type(value) is str and value in members:
            return members[value]
        raise ProtocolError(f": a {kind.__name__} expected")

    return decode


def _array(values: Any) -> list[Any]:
    if type(values) is list:
        return values
    raise ProtocolError(f": an array expected, found {type(values).__name__}")


def _integers(values: Any) -> tuple[int, ...]:
    # Long prompts pass here: types are looked at without a Python loop.
    if set(map(type, _array(values))) <= {int}:
        return tuple(values)
    raise ProtocolError(": an array of int expected")


def _pack(*values: Any) -> tuple[Any, ...]:
    return values


def _is_optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and type(None) in get_args(kind)


def _without_none(kind: types.UnionType) -> Any:
    (inner,) = (argument for argument in get_args(kind) if argument is not type(None))
    return inner
