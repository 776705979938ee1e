"""Training of the speech tokenizer: ASR losses, commitment, and the codebook's moving averages."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Float, Int, PyTree
from speechlm_jax.nn.losses import cross_entropy
from speechlm_jax.nn.param import Functional
from speechlm_jax.speech_tokenizer.encoder import CONV_STRIDE
from speechlm_jax.speech_tokenizer.model import (
    NUM_BYTES,
    SpeechTokenizer,
    SpeechTokenizerConfig,
    TokenizerOutput,
)
from speechlm_jax.speech_tokenizer.quantizer import CodebookSums, Quantizer
from speechlm_jax.train.stage import Evaluation, LossOutput, Stage

DRAWN = "drawn"  # the array that `prepare` adds to a batch: see `Quantizer.draw`


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerLoss:
    """Weights of the losses, each a mean per clip.

    Attributes:
      decoder: weight of the attention decoder's cross-entropy, per text id.
      ctc: weight of the CTC loss of text ids over the codes, per text id (0 switches it off).
      early_ctc: weight of the CTC loss of bytes at 50 Hz before pooling, per byte (0 switches it
        off).
      commitment: weight of the squared distance of latents to their entries, a mean over their
        width and over the clip's valid frames. The one factor of that term: the GLM-4-Voice report
        names 10, the released config a coefficient of 0.25 and a scale of 10, which is 2.5 here.
    """

    decoder: float = 1.0
    ctc: float = 1.0
    early_ctc: float = 0.3
    commitment: float = 0.25

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "decoder", "ctc", "early_ctc", "commitment")


def functional(config: SpeechTokenizerConfig) -> Functional:
    """Returns the model as functions of its parameters."""
    return Functional(lambda rngs: SpeechTokenizer(config, rngs=rngs))


def make_stage(
    config: SpeechTokenizerConfig,
    weights: SpeechTokenizerLoss,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    *,
    evals: tuple[Evaluation, ...] = (),
    identity: dict[str, str] | None = None,
) -> Stage:
    """Returns the stage that trains a speech tokenizer.

    Batches hold `mel` [batch, mel_frames, mels], `mel_lengths` [batch], `text_ids` [batch, length]
    and `text_lengths`, `bytes` [batch, bytes] and `byte_lengths`; a row with text length 0 is
    padding and is ignored.
    """
    model = functional(config)
    quantizer = Functional(lambda rngs: Quantizer(config.quantizer, rngs=rngs))

    def loss(
        params: PyTree, variables: PyTree, batch: Mapping[str, Array], key: Array
    ) -> LossOutput:
        tokenizer = model.bind(params, variables)
        output = tokenizer(batch["mel"].astype(jnp.float32), batch["mel_lengths"])
        real = (batch["text_lengths"] > 0).astype(jnp.float32)
        parts = {
            "decoder": _decoder_loss(tokenizer, output, batch),
            "ctc": ctc_loss(
                output.ctc,
                jnp.sum(output.frame_mask, axis=1),
                batch["text_ids"],
                batch["text_lengths"],
                blank=config.blank,
            ),
            "early_ctc": ctc_loss(
                output.early_ctc,
                -(-batch["mel_lengths"] // CONV_STRIDE),
                batch["bytes"],
                batch["byte_lengths"],
                blank=NUM_BYTES,
            ),
            "commitment": _mean(output.quantized.commitment, output.frame_mask),
        }
        total = sum(getattr(weights, name) * part for name, part in parts.items())
        codebook = tokenizer.quantizer.sums(
            output.latents,
            output.quantized.codes,
            output.frame_mask & (real[:, None] > 0),
            batch[DRAWN],
        )
        metrics: dict[str, Any] = {
            name: (jnp.sum(part * real), jnp.sum(real)) for name, part in parts.items()
        }
        return LossOutput(jnp.sum(total * real), jnp.sum(real), metrics, codebook)

    def prepare(
        params: PyTree, variables: PyTree, batch: Mapping[str, Array], key: Array
    ) -> dict[str, Array]:
        tokenizer = model.bind(params, variables)
        codes = jax.eval_shape(tokenizer.mel_to_codes, batch["mel"], batch["mel_lengths"])
        valid = tokenizer.encoder.valid_frames(batch["mel_lengths"], codes.shape[1])
        real = (batch["text_lengths"] > 0)[:, None]
        return {DRAWN: tokenizer.quantizer.draw(valid & real, key)}

    def finish(variables: PyTree, codebook: CodebookSums) -> PyTree:
        bound = quantizer.bind({}, variables["quantizer"])
        return {**variables, "quantizer": bound.updated(codebook)}

    return Stage(
        name="speech_tokenizer",
        init=model.init,
        axes=model.axes,
        loss=loss,
        batches=batches,
        prepare=prepare,
        finish=finish,
        evals=evals,
        identity=identity or {},
    )


def _decoder_loss(
    tokenizer: SpeechTokenizer, output: TokenizerOutput, batch: Mapping[str, Array]
) -> Float[Array, " batch"]:
    """Returns the attention decoder's cross-entropy per text id; each row ends with `start`."""
    start = tokenizer.config.start
    ids, lengths = batch["text_ids"], batch["text_lengths"]
    places = jnp.arange(ids.shape[1] + 1)[None]
    said = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=start)
    targets = jnp.where(places < lengths[:, None], jnp.pad(ids, ((0, 0), (0, 1))), start)
    logits = tokenizer.read(output.memory, output.frame_mask, said, lengths + 1)
    return _mean(cross_entropy(logits, targets), places <= lengths[:, None])


def ctc_loss(
    logits: Float[Array, "batch time classes"],
    input_lengths: Int[Array, " batch"],
    labels: Int[Array, "batch labels"],
    label_lengths: Int[Array, " batch"],
    *,
    blank: int,
) -> Float[Array, " batch"]:
    """Returns the CTC loss (Graves et al. 2006) of each row, divided by its number of labels.

    A row that is too short for its labels has loss 0.
    """
    late = jnp.arange(logits.shape[1])[None] >= input_lengths[:, None]
    pad = jnp.arange(labels.shape[1])[None] >= label_lengths[:, None]
    losses = optax.ctc_loss(
        logits, late.astype(jnp.float32), labels, pad.astype(jnp.float32), blank_id=blank
    )
    # A clip that is shorter than its labels (equal neighbours need a blank between them) has no
    # path: optax returns about 1e5, which would dominate the other losses.
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & (pad[:, 1:] == 0), axis=1)
    possible = input_lengths >= label_lengths + repeats
    return jnp.where(possible, losses, 0.0) / jnp.maximum(label_lengths, 1)


def _mean(values: Float[Array, "batch length"], mask: Array) -> Float[Array, " batch"]:
    mask = mask.astype(jnp.float32)
    return jnp.sum(values * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0)
