"""Training of the text-to-token model: a language model over `voice tts text | speech` rows.

Paper section 2.2: a decoder-only model trained on TTS pairs tokenised with the speech tokenizer;
only the speech counts in the loss (the task's `inputs` do not).
"""

from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.train.stage import Evaluation, LossOutput, Stage
from speechlm_jax.vocab import Vocab


def make_stage(
    config: LanguageModelConfig,
    vocab: Vocab,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    *,
    evals: tuple[Evaluation, ...] = (),
    identity: dict[str, str] | None = None,
    z_loss: float = 0.0,
) -> Stage:
    """Returns the stage that trains a text-to-token model on packed rows (see `data/rows.py`).

    Args:
      z_loss: weight of the squared log-partition in the loss; see `fused_cross_entropy`.
    """
    model = functional(config)

    def loss(
        params: PyTree, variables: PyTree, batch: Mapping[str, Array], key: Array
    ) -> LossOutput:
        lost = model.bind(params).packed_loss(batch, z_weight=z_loss)
        metrics = {"accuracy": (jnp.sum(lost.correct * lost.weights), lost.weight_sum)}
        return LossOutput(lost.loss_sum, lost.weight_sum, metrics)

    return Stage(
        name="text_to_token",
        init=model.init,
        axes=model.axes,
        loss=loss,
        batches=batches,
        evals=evals,
        identity={"vocabulary": vocab.fingerprint, **(identity or {})},
    )
