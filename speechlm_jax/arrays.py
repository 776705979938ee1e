"""The dimension words of the project, and the array aliases that tests execute.

The words are those of docs/glossary.md: `batch`, `samples`, `mel_frames`, `mels`, `frames`,
`length`, `embed`, `mlp`, `heads`, `kv_heads`, `head_dim`, `vocab`, `layers`, `codebook`,
`channels`. A one-word shape takes a leading space: `Float[Array, " samples"]`.

JAX is imported only when `Array`, `Key` or `PyTree` is requested: code that reads rows on disk, and
help, need no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int, Integer, Num, Shaped, UInt
from numpy import ndarray

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Key, PyTree

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Integer",
    "Key",
    "Num",
    "PyTree",
    "Shaped",
    "UInt",
    "ndarray",
]


_OF_JAX = {"Array": "jax", "Key": "jaxtyping", "PyTree": "jaxtyping"}  # these import JAX


def __getattr__(name: str) -> Any:
    if name not in _OF_JAX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OF_JAX[name]), name)
