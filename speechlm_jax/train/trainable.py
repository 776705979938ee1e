"""Selects the parameters that a run trains: a part of the tree, by the names of its leaves.

The part is the same nest of dicts without the other leaves, so that gradients, moments and logical
axes of frozen parameters are never made.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from speechlm_jax.arrays import PyTree
from speechlm_jax.errors import UserError


def part(tree: PyTree, patterns: Sequence[str]) -> PyTree:
    """Returns the leaves whose path, joined by "/", matches a pattern; without patterns, all.

    `tree` is a nest of dicts: parameters, or their logical axes.

    Raises:
      UserError: a pattern matches no leaf.
    """
    if not patterns:
        return tree
    paths = list(_paths(tree))
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UserError(
                f"trainable: {pattern!r} fits no parameter; the first of them is {paths[0]!r}"
            )
    return select(tree, lambda path: any(fnmatchcase(path, pattern) for pattern in patterns))


def select(tree: PyTree, wanted: Callable[[str], bool]) -> PyTree:
    """Returns the leaves whose path `wanted` accepts, without dicts that this leaves empty."""

    def chosen(node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node if wanted(path) else None
        found = {k: chosen(v, f"{path}/{k}" if path else str(k)) for k, v in node.items()}
        return {k: v for k, v in found.items() if v is not None} or None

    return chosen(tree, "") or {}


def overlay(tree: PyTree, changed: PyTree) -> PyTree:
    """Returns `tree` with the leaves of `changed`, a part of it, in place of its own."""
    if not isinstance(tree, dict):
        return changed
    return {k: overlay(v, changed[k]) if k in changed else v for k, v in tree.items()}


def _paths(tree: PyTree, path: str = "") -> Iterator[str]:
    if not isinstance(tree, dict):
        yield path
        return
    for key, node in tree.items():
        yield from _paths(node, f"{path}/{key}" if path else str(key))
