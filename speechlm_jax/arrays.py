"""The dimension words of the project, and the array aliases that tests execute.

The words are those of docs/glossary.md: `batch`, `samples`, `mel_frames`, `mels`, `frames`,
`length`, `embed`, `mlp`, `heads`, `kv_heads`, `head_dim`, `vocab`, `layers`, `codebook`,
`channels`. A one-word shape takes a leading space: `Float[Array, " samples"]`.
"""

from jax import Array
from jaxtyping import Bool, Float, Int, Integer, Key, Num, PyTree, Shaped, UInt
from numpy import ndarray

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
