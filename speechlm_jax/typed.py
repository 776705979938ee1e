"""Converts JSON data to values of annotated types, or says in one line which field is wrong."""

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from speechlm_jax.errors import UserError

_BEFORE = "before"
_INTEGERS = range(-(2**63), 2**63)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def added(default: Any, *, before: Any = dataclasses.MISSING) -> Any:
    """Returns the default of a field that came after configs of its class were written to disk.

    Those configs mean the value `before`, by default `default`. With that value the field is not
    part of a fingerprint, so that existing fingerprints stay valid. A later change of `default`
    leaves `before` as it is.
    """
    before = default if before is dataclasses.MISSING else before
    return dataclasses.field(default=default, metadata={_BEFORE: before})


def before(field: dataclasses.Field) -> Any:
    """Returns the value that data without this field means, or MISSING if the field is required."""
    if is_added(field):
        return field.metadata[_BEFORE]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def is_added(field: dataclasses.Field) -> bool:
    """Returns whether a field came after configs of its class were written (see `added`)."""
    return _BEFORE in field.metadata


def as_before(field: dataclasses.Field, config: Any) -> bool:
    """Returns whether a field was `added` and has the value that configs without it mean."""
    return is_added(field) and getattr(config, field.name) == field.metadata[_BEFORE]


def moves(cls: type) -> dict[str, str]:
    """Returns the fields that a class had, each with its present field (dotted if deeper)."""
    return getattr(cls, "MOVED", {})


def moved(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """Returns a config's JSON data with moved fields where they are now.

    A class names in `MEANT` what values of a moved field are now, if they are others.
    """
    made = {key: value for key, value in data.items() if key not in moves(cls)}
    for old in moves(cls).keys() & data.keys():
        outer, _, name = moves(cls)[old].rpartition(".")
        meant = getattr(cls, "MEANT", {}).get(old, {})
        value = next((now for said, now in meant.items() if said is data[old]), data[old])
        made |= {outer: {**made.get(outer, {}), name: value}} if outer else {name: value}
    return made


def short(value: Any) -> str:
    """Returns a value as a message shows it: shortened if it is long."""
    return "null" if value is None else _SHORT.repr(value)


def field_types(cls: type) -> dict[str, Any]:
    """Returns the annotated types of a dataclass by field."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def unknown(name: str, known: Iterable[str]) -> str:
    """Returns the message that a field is unknown, and which one is the nearest."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    said = f"unknown field {short(name)}"
    return f"{said}; did you mean '{near[0]}'?" if near else said


def built(build: Callable[[], Any], path: str) -> Any:
    """Returns the result of `build`; puts the path of the config before its errors."""
    try:
        return build()
    except UserError as error:
        raise UserError(f"{path}.{error}" if path else str(error)) from None
    except TypeError as error:
        raise UserError(f"{path}: {error}") from error


def typed(hint: Any, value: Any, path: str) -> Any:
    """Converts JSON data to the annotated type; raises a UserError that names `path`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, path)
    if origin is typing.Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            choices = ", ".join(map(repr, arguments))
            raise UserError(f"{path}: {short(value)} is not one of {choices}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return _tuple(arguments, value, path)
    if origin is dict and isinstance(value, dict):
        return {key: typed(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _dataclass(hint, value, path)
    return _plain(hint, value, path)


def _plain(hint: Any, value: Any, path: str) -> Any:
    """Converts a number, a string, a path or a bool."""
    is_bool = type(value) is bool
    if hint is float and isinstance(value, (int, float)) and not is_bool:
        if not abs(value) < math.inf or (type(value) is int and value not in _INTEGERS):
            raise UserError(f"{path}: {short(value)} is no finite number")
        return float(value)
    if hint is int and type(value) is int and value not in _INTEGERS:
        raise UserError(f"{path}: {short(value)} does not fit into 64 bits")
    if isinstance(value, str) and hint in (str, Path):
        if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{path}: {short(value)} is not text in UTF-8")
        return hint(value)
    if isinstance(hint, type) and isinstance(value, hint) and is_bool == (hint is bool):
        return value
    raise UserError(f"{path}: {short(value)} is not of type {_name(hint)}")


def _name(hint: Any) -> str:
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise UserError(f"{path}: takes {len(arguments)} values, not {len(value)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(typed(t, v, f"{path}[{i}]") for i, (t, v) in enumerate(pairs))


def _union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in choices:
        return None
    if isinstance(value, dict):  # takes the dataclass that is named, or the only one
        classes = [choice for choice in choices if dataclasses.is_dataclass(choice)]
        named = [c for c in classes if _name(c) == value.get("class")]
        if len(named or classes) == 1:
            return typed((named or classes)[0], value, path)
    for choice in choices:
        try:
            return typed(choice, value, path)
        except UserError:
            continue
    raise UserError(f"{path}: {short(value)} is not of type {' or '.join(map(_name, choices))}")


def _dataclass(cls: type, data: dict[str, Any], path: str) -> Any:
    hints = field_types(cls)
    if data.get("class", cls.__name__) != cls.__name__:
        raise UserError(f"{path}: is a {short(data['class'])}, not a {cls.__name__}")
    given = {key: value for key, value in moved(cls, data).items() if key != "class"}
    for name in given:
        if name not in hints:
            raise UserError(f"{path}: {unknown(name, hints)}")
    for field in dataclasses.fields(cls):
        if field.name not in given and is_added(field):
            given[field.name] = to_plain(field.metadata[_BEFORE])
    values = {name: typed(hints[name], value, f"{path}.{name}") for name, value in given.items()}
    return built(lambda: cls(**values), path)


def to_plain(value: Any, *, whole: bool = True) -> Any:
    """Returns a config as JSON data; without `whole`, leaves out fields that are `as_before`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: to_plain(getattr(value, field.name), whole=whole)
            for field in dataclasses.fields(value)
            if whole or not as_before(field, value)
        }
        return {"class": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): to_plain(item, whole=whole) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, whole=whole) for item in value]
    return str(value) if isinstance(value, Path) else value
