"""CTranslate2's `model.bin`: the name of the model's spec, and its variables.

The format: `CTranslate2/python/ctranslate2/specs/model_spec.py`, binary version 6; little-endian.
"""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf_file import Cursor

from speechlm_jax.errors import UserError

VERSION = 6
TYPES = [np.dtype(name) for name in ("<f4", "<i1", "<i2", "<i4", "<f2")]


@dataclasses.dataclass(frozen=True)
class CTranslate2Model:
    """A model: its spec's name, its variables by name, and other names of them (alias -> name)."""

    spec: str
    variables: dict[str, np.ndarray]
    aliases: dict[str, str]


def read_ctranslate2(parts: Sequence[str | Path]) -> CTranslate2Model:
    """Reads a file that is stored in `parts`, one after the other.

    Raises:
      UserError: together they are no whole file of this version, or hold a variable of an unknown
        type.
    """
    name = " + ".join(Path(part).name for part in parts)
    at = _Cursor(b"".join(Path(part).read_bytes() for part in parts))
    try:
        if at.number("I") != VERSION:
            raise UserError(f"{name}: is no model of CTranslate2 of version {VERSION}")
        spec, _ = at.text(), at.number("I")
        variables = dict(at.variable() for _ in range(at.number("I")))
        aliases = {at.text(): at.text() for _ in range(at.number("I"))}
    except (struct.error, UnicodeDecodeError, ValueError):
        raise UserError(f"{name}: is no whole model of CTranslate2; fetch it again") from None
    return CTranslate2Model(spec, variables, aliases)


class _Cursor(Cursor):
    def text(self) -> str:
        """A string: its length counts the NUL behind it."""
        return self.take(self.number("H")).rstrip(b"\0").decode()

    def variable(self) -> tuple[str, np.ndarray]:
        name = self.text()
        shape = tuple(self.number("I") for _ in range(self.number("B")))
        kind, size = self.number("B"), self.number("I")
        if kind >= len(TYPES):
            raise UserError(f"{name}: is stored as type {kind}; known are 0 to {len(TYPES) - 1}")
        return name, np.frombuffer(self.take(size), TYPES[kind]).reshape(shape)
