"""Initial rows of the new ids in a text model's vocabulary.

A new row is the mean of the old rows plus a little noise. At the start, no new id is then likelier
than an average one, and the text model's own predictions change by a bounded amount (Hewitt 2021,
"Initializing new word embeddings for pretrained language models"). The noise, a tenth of the old
rows' standard deviation in each column, makes the codes differ from the first step on.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from speechlm_jax.convert.families import Tensor
from speechlm_jax.convert.safetensors_folder import Folder
from speechlm_jax.errors import UserError

VOCABULARY = ("embedding", "head/kernel")  # parameters with a row for each id
NOISE = 0.1


@dataclasses.dataclass(frozen=True)
class Extended:
    """View of a folder with a vocabulary of `size` rows; old rows are unchanged.

    A new row depends only on (seed, tensor, row) and the old rows, and has their dtype. A model
    that was not trained further is therefore exported bit for bit as it was read.
    """

    folder: Folder
    tensors: tuple[Tensor, ...]
    size: int
    seed: int = 0
    noise: float = NOISE

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor with new rows; raises UserError if `size` is below the old size."""
        found = dict(self.folder.shapes)
        for name in self._longer:
            if name in found:
                old, *columns = found[name]
                if self.size < old:
                    raise UserError(f"{self.folder.path}: has {old} ids, more than {self.size}")
                found[name] = (self.size, *columns)
        return found

    def read(self, name: str, *where: slice) -> Shaped[ndarray, "..."]:
        """Reads a part of a tensor and draws its new rows."""
        old = self.folder.shapes[name][0] if name in self._longer else None
        rows = where[0] if where else slice(None)
        first, last, _ = rows.indices(self.shapes[name][0])
        if old is None or last <= old:
            return self.folder.read(name, *where)
        columns = where[1] if len(where) > 1 else slice(None)
        drawn = [self._row(name, row)[columns] for row in range(max(first, old), last)]
        new = np.asarray(drawn).astype(self.folder.read(name, slice(1)).dtype)
        if first >= old:
            return new
        return np.concatenate([self.folder.read(name, slice(first, old), columns), new])

    @cached_property
    def _longer(self) -> Mapping[str, int]:
        """Index in `VOCABULARY` of each tensor that has a row for each id."""
        return {
            tensor.name: VOCABULARY.index(tensor.ours[0])
            for tensor in self.tensors
            if tensor.ours and tensor.ours[0] in VOCABULARY
        }

    @cached_property
    def _moments(self) -> dict[str, tuple[Float[ndarray, " embed"], Float[ndarray, " embed"]]]:
        return {name: self._measure(name) for name in self._longer if name in self.folder.shapes}

    def _measure(self, name: str) -> tuple[ndarray, ndarray]:
        """Returns the mean and standard deviation of each column over the old rows."""
        rows, columns = self.folder.shapes[name]
        total, squares = np.zeros(columns), np.zeros(columns)
        for stored in self.folder.chunks(name):
            part = stored.astype(np.float64)
            total += part.sum(axis=0)
            squares += np.square(part).sum(axis=0)
        mean = total / rows
        return mean, np.sqrt(np.maximum(squares / rows - mean**2, 0.0))

    def _row(self, name: str, row: int) -> ndarray:
        mean, deviation = self._moments[name]
        random = np.random.default_rng((self.seed, self._longer[name], row))
        return mean + self.noise * deviation * random.normal(size=len(mean))
