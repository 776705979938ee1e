"""A module that is imported at its first use.

A verb imports JAX or TensorFlow, which takes seconds; help and errors of paths do not wait for it.
"""

import importlib
from typing import Any


class Later:
    """Stand-in for a module, imported at first use; an attribute set on it (by a test) stays."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # inspection of an object must not import the module
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


def later(name: str) -> Any:
    """Returns a stand-in for the module of this full name, without an import."""
    return Later(name)
