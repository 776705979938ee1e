"""Packed rows -> a language model's loss on each row."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.sharding import in_scope


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """Summed loss (nats) of a row's counted ids, and their number (0 in a row of padding)."""

    loss_sum: float
    num_ids: float


def rows_to_losses(
    config: LanguageModelConfig,
    params: PyTree,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: Mesh | None = None,
) -> Iterator[RowLoss]:
    """Yields the loss of each row of the batches, in order; `data/rows.py` lists their fields.

    Args:
      mesh: devices that hold the parameters and split the rows of a batch; None: one device.
    """
    model = functional(config)

    @jax.jit
    def sums(params: PyTree, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        lost = model.bind(params).packed_loss(batch)
        return jnp.sum(lost.losses * lost.weights, axis=1), jnp.sum(lost.weights, axis=1)

    for batch in batches:
        with in_scope(mesh):
            losses, ids = (np.asarray(part) for part in sums(params, batch))
        yield from (RowLoss(float(a), float(b)) for a, b in zip(losses, ids, strict=True))
