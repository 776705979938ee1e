"""Pre-training and fine-tuning of the language model on packed rows; losses by kind of data."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.train.stage import Evaluation, LossOutput, Stage
from speechlm_jax.train.work import Measure, packed_work
from speechlm_jax.vocab import Vocab


def language_model_work(config: LanguageModelConfig) -> Measure:
    """Returns the measure of FLOPs that packed rows take in a language model of this config."""
    stack = config.transformer
    matrices = [
        leaf for leaf in jax.tree.leaves(functional(config).shapes["transformer"]) if leaf.ndim == 3
    ]
    weights = sum(leaf.size for leaf in matrices) + config.vocab_size * stack.embed
    return packed_work(weights, layers=stack.num_layers, heads=stack.heads, head_dim=stack.head_dim)


def make_stage(
    config: LanguageModelConfig,
    vocab: Vocab,
    tasks: Sequence[str],
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    *,
    evals: tuple[Evaluation, ...] = (),
    identity: dict[str, str] | None = None,
    name: str = "lm",
    z_loss: float = 0.0,
) -> Stage:
    """Returns the stage that trains a language model.

    Batches hold `ids`, `segments`, `positions`, `loss_mask` [batch, length] and `task` [batch], the
    index of each row's task in `tasks`. The loss is the mean over counted ids of either modality,
    all with equal weight (GLM-4-Voice report, section 4.1, mentions no weights).

    Args:
      z_loss: weight of the squared log-partition in the loss; see `fused_cross_entropy`.
    """
    model = functional(config)

    def loss(
        params: PyTree, variables: PyTree, batch: Mapping[str, Array], key: Array
    ) -> LossOutput:
        lost = model.bind(params).packed_loss(batch, z_weight=z_loss)
        is_speech = (lost.targets >= vocab.speech_offset) & (
            lost.targets < vocab.speech_offset + vocab.codebook_size
        )
        metrics = {"loss/speech": lost.over(is_speech), "loss/text": lost.over(~is_speech)}
        for number, task in enumerate(tasks):
            metrics[f"loss/task/{task}"] = lost.over((batch["task"] == number)[:, None])
        return LossOutput(lost.loss_sum, lost.weight_sum, metrics)

    return Stage(
        name=name,
        init=model.init,
        axes=model.axes,
        loss=loss,
        batches=batches,
        evals=evals,
        work=language_model_work(config),
        identity={"vocabulary": vocab.fingerprint, **(identity or {})},
    )
