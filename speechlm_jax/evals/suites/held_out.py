"""Held-out loss of a language model, by task."""

from collections.abc import Mapping, Sequence

from speechlm_jax.evals.items import Item
from speechlm_jax.lm.row_losses import RowLoss

LOSSES = "held_out_loss/"  # prefix of figures in nats; a task's name follows


def loss_items(losses: Mapping[str, Sequence[RowLoss]]) -> list[Item]:
    """Returns items of held-out loss in nats per id: one for each row of each task."""
    return [
        Item(f"{LOSSES}{task}", "", "", "", f"row {number}", "", row.loss_sum, row.num_ids)
        for task, rows in losses.items()
        for number, row in enumerate(rows)
        if row.num_ids
    ]
