"""Identifies a user's function, so that its outputs are made again when it changes."""

import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from speechlm_jax.user_code import is_users

_PLAIN = (str, bytes, int, float, bool, type(None))


def code_identity(function: Any, *, _known: frozenset[CodeType] = frozenset()) -> Any:
    """Returns a function's identity: its source and the plain values it closes over or has bound.

    For a user's function it includes the functions, classes and plain values of the user's modules
    that the function uses by name, and those that they use. For a callable object it is the
    object's class and plain values; for a bound method, the method's source and the object's plain
    values.
    """
    if isinstance(function, functools.partial):
        bound = [*function.args, *sorted(function.keywords.items())]
        return [code_identity(function.func), [_value_identity(value) for value in bound]]
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        if not hasattr(function, "__qualname__"):
            return [code_identity(type(function)), _held(function)]
        source = function.__qualname__
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    found = [source, [_value_identity(value) for value in cells]]
    if inspect.ismethod(function):
        found.append(_held(function.__self__))
    named = _named(function, _known)
    return [*found, named] if named else found


def _named(function: Any, known: frozenset[CodeType]) -> list[Any]:
    """Returns [name, identity] of the globals that a user's function or class uses, by name."""
    functions = [inspect.unwrap(function)]
    if inspect.isclass(function):
        functions = [value for value in vars(function).values() if inspect.isfunction(value)]
    found: dict[str, Any] = {}
    for one in functions:
        code = getattr(one, "__code__", None)
        if code is None or code in known or not is_users(code.co_filename):
            continue
        for name in sorted({*_names(code)} & one.__globals__.keys()):
            identity = _global_identity(one.__globals__[name], known | {code})
            if identity is not None:
                found[name] = identity
    return [list(pair) for pair in sorted(found.items())]


def _names(code: CodeType) -> Iterator[str]:
    """Yields the names that a function uses, and those that the functions inside it use."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _global_identity(value: Any, known: frozenset[CodeType]) -> Any:
    """Returns the identity of a user's function or class, or a plain value; None for all else."""
    if inspect.isfunction(value) or inspect.isclass(value):
        code = getattr(inspect.unwrap(value), "__code__", None)
        try:
            file = inspect.getsourcefile(value) if code is None else code.co_filename
        except (OSError, TypeError):
            return None
        return code_identity(value, _known=known) if file and is_users(file) else None
    return _plain_identity(value)


def _plain_identity(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, re.Pattern):
        return [repr(value.pattern), value.flags]
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        items = value.items() if isinstance(value, dict) else value
        parts = [_plain_identity(item) for item in items]
        if None in parts:
            return None
        return sorted(parts, key=repr) if isinstance(value, (set, frozenset)) else parts
    return None


def _held(thing: Any) -> Any:
    fields = {} if inspect.isclass(thing) else getattr(thing, "__dict__", {})
    return [[name, _value_identity(value)] for name, value in sorted(fields.items())]


def _value_identity(value: Any) -> Any:
    if inspect.isfunction(value) or isinstance(value, functools.partial):
        return code_identity(value)
    if isinstance(value, (str, int, float, bool, Path, tuple, list, dict, type(None))):
        return repr(value)
    return type(value).__qualname__  # its repr may hold an address, which differs from run to run
