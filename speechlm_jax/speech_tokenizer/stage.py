"""Training of the speech tokenizer: ASR losses, commitment, and the codebook's moving averages."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int, PyTree
from speechlm_jax.errors import UserError
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

    Raises:
      UserError: the model has Whisper's text side, or no part that a loss could train.
    """
    if config.text is not None or not (config.decoder_layers or config.has_ctc):
        raise UserError(
            "model: training takes our own text side (text null) and a decoder or CTC heads; a "
            "Whisper and what was made from one can be run, not trained yet"
        )
    model = functional(config)
    training = _Training(config, weights, model)
    return Stage(
        name="speech_tokenizer",
        init=model.init,
        axes=model.axes,
        loss=training.loss,
        batches=batches,
        prepare=training.draw if config.quantizer else None,
        finish=training.move_codebook if config.quantizer else None,
        evals=evals,
        identity=identity or {},
    )


@dataclasses.dataclass(frozen=True)
class _Training:
    """The functions of the stage."""

    config: SpeechTokenizerConfig
    weights: SpeechTokenizerLoss
    model: Functional

    def draw(
        self, params: PyTree, variables: PyTree, batch: Mapping[str, Array], key: Array
    ) -> dict[str, Array]:
        """Returns the frames of a whole batch from which entries of the codebook may restart."""
        tokenizer, lengths = self.model.bind(params, variables), batch["mel_lengths"]
        mel = batch["mel"].astype(jnp.float32)
        codes = jax.eval_shape(tokenizer.mel_to_codes, mel, lengths)
        valid = tokenizer.encoder.valid_frames(lengths, codes.shape[1])
        return {DRAWN: tokenizer.quantizer.draw(valid & _is_real(batch)[:, None], key)}

    def loss(
        self, params: PyTree, variables: PyTree, batch: Mapping[str, Array], key: Array
    ) -> LossOutput:
        """Returns the sums over a micro batch's clips and, for the codebook, over their frames."""
        tokenizer = self.model.bind(params, variables)
        output = tokenizer(batch["mel"].astype(jnp.float32), batch["mel_lengths"])
        parts = self._parts(tokenizer, output, batch)
        total = sum(getattr(self.weights, name) * part for name, part in parts.items())
        real = _is_real(batch)
        codebook: CodebookSums | tuple[()] = ()
        if output.quantized is not None:
            valid = output.frame_mask & real[:, None]
            codebook = tokenizer.quantizer.sums(
                output.latents, output.quantized.codes, valid, batch[DRAWN]
            )
        counted = real.astype(jnp.float32)
        metrics: dict[str, Any] = {
            name: (jnp.sum(part * counted), jnp.sum(counted)) for name, part in parts.items()
        }
        return LossOutput(jnp.sum(total * counted), jnp.sum(counted), metrics, codebook)

    def _parts(
        self, tokenizer: SpeechTokenizer, output: TokenizerOutput, batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, " batch"]]:
        """Returns the losses of each clip that the model has parts for, by their weight's name."""
        parts: dict[str, Float[Array, " batch"]] = {}
        if tokenizer.decoder is not None:
            parts["decoder"] = _decoder_loss(tokenizer, output, batch)
        if output.ctc is not None:
            parts["ctc"] = ctc_loss(
                output.ctc,
                jnp.sum(output.frame_mask, axis=1),
                batch["text_ids"],
                batch["text_lengths"],
                blank=self.config.blank,
            )
        if output.early_ctc is not None:
            parts["early_ctc"] = ctc_loss(
                output.early_ctc,
                -(-batch["mel_lengths"] // CONV_STRIDE),
                batch["bytes"],
                batch["byte_lengths"],
                blank=NUM_BYTES,
            )
        if output.quantized is not None:
            parts["commitment"] = _mean(output.quantized.commitment, output.frame_mask)
        return parts

    def move_codebook(self, variables: PyTree, codebook: CodebookSums) -> PyTree:
        """Returns the variables after a step with these sums over all its frames."""
        config = self.config.quantizer
        assert config is not None, "only a stage with a quantizer has this function"
        make = Functional(lambda rngs: Quantizer(config, rngs=rngs))
        quantizer = make.bind({}, variables["quantizer"])
        return {**variables, "quantizer": quantizer.updated(codebook)}


def _is_real(batch: Mapping[str, Array]) -> Bool[Array, " batch"]:
    """Returns which rows are clips, not padding."""
    return batch["text_lengths"] > 0


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
