"""A module that is imported when something of it is first used.

A verb imports JAX, or TensorFlow, which takes seconds: help, and a wrong path, need not wait.
"""

import importlib
from typing import Any


class Later:
    """Stands for a module; what is set on it (by a test) stays on it."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # of those who look at objects; a module is imported for use
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


def later(name: str) -> Any:
    """The module of this full name, not yet imported."""
    return Later(name)
