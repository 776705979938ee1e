"""Mel frames or codes -> text ids by the attention decoder: greedy, or by a beam; without times."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int, PyTree, ndarray
from speechlm_jax.nn.cache import Cache
from speechlm_jax.nn.param import Functional
from speechlm_jax.padding import run_in_batches
from speechlm_jax.speech_tokenizer.model import SpeechTokenizer, SpeechTokenizerConfig, WhisperText

NEVER = -1e30  # of what may not be written; finite, so that sums of it are numbers


@dataclasses.dataclass(frozen=True)
class WritingConfig:
    """How the attention decoder writes.

    Attributes:
      beams: transcripts that are followed at a time; 1 is greedy.
      max_ids: ids of a transcript, prompt included; no more than the decoder has positions.
    """

    beams: int = 1
    max_ids: int = 448

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "beams", "max_ids")


class AttentionReader:
    """A trained model: mel frames or codes to text ids, by its attention decoder."""

    def __init__(
        self,
        config: SpeechTokenizerConfig,
        params: PyTree,
        variables: PyTree,
        *,
        writing: WritingConfig = WritingConfig(),
        batch_size: int = 8,
    ):
        self.config, self._batch_size = config, batch_size
        self.text = config.text or WhisperText((config.start,), config.start, max_ids=2**31 - 1)
        model = functional(config)

        # Weights are arguments: those that a program closes over become constants of it.
        @jax.jit
        def hear(weights: Any, mel: Array, lengths: Array, prompt: Array) -> Array:
            tokenizer = model.bind(*weights)
            memory, frame_mask = tokenizer.mel_to_memory(mel, lengths)
            return write(tokenizer, memory, frame_mask, prompt, self.text, writing)

        @jax.jit
        def read(weights: Any, codes: Array, lengths: Array, prompt: Array) -> Array:
            tokenizer = model.bind(*weights)
            frame_mask = jnp.arange(codes.shape[1])[None] < lengths[:, None]
            memory = tokenizer.codes_to_memory(codes, frame_mask)
            return write(tokenizer, memory, frame_mask, prompt, self.text, writing)

        weights = jax.jit(unstacked)(params), variables
        self._hear, self._read = partial(hear, weights), partial(read, weights)

    def mels_to_ids(
        self,
        mels: Sequence[Float[ndarray, "_mel_frames mels"]],
        *,
        prompt: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Returns the text ids of each clip, in order, without prompt and end.

        Args:
          prompt: ids that the decoder reads first, as of another language; None: the model's.
        """
        multiple = self.config.encoder.mel_multiple
        first = np.array(prompt or self.text.prompt, np.int32)
        found = run_in_batches(
            mels,
            lambda _, mel, lengths: np.asarray(self._hear(mel, lengths, first)),
            batch_size=self._batch_size, multiple=multiple, by_length=True, dtype=np.float32,
        )  # fmt: skip
        return [self._cut(row) for row in found]

    def codes_to_ids(
        self, codes: Sequence[Int[ndarray, " _frames"]], *, prompt: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Returns the text ids of each sequence of codes: see `mels_to_ids`."""
        first = np.array(prompt or self.text.prompt, np.int32)
        found = run_in_batches(
            codes,
            lambda _, some, lengths: np.asarray(self._read(some, lengths, first)),
            batch_size=self._batch_size, multiple=32, by_length=True,
        )  # fmt: skip
        return [self._cut(row) for row in found]

    def _cut(self, row: Int[ndarray, " written"]) -> list[int]:
        ids = row.tolist()
        return ids[: ids.index(self.text.end)] if self.text.end in ids else ids


def functional(config: SpeechTokenizerConfig) -> Functional:
    """Returns the model as functions of parameters whose decoder is `unstacked`."""
    return Functional(lambda rngs: SpeechTokenizer(config, rngs=rngs, stacked=False))


def unstacked(params: PyTree) -> PyTree:
    """Returns parameters with each layer of the attention decoder alone: no step slices a stack."""
    blocks = params["decoder"]["blocks"]
    layers = len(jax.tree.leaves(blocks)[0])
    alone = {
        number: jax.tree.map(lambda leaf: leaf[number], blocks)  # noqa: B023
        for number in range(layers)
    }
    return {**params, "decoder": {**params["decoder"], "blocks": alone}}


class Beam(NamedTuple):
    """Transcripts that are being written, and the best that ended, of each clip.

    Attributes:
      place: positions that are filled, prompt included.
      logits: of what may follow each transcript.
      scores, ended_scores: log-probabilities; of those that ended, by id.
      num_ended: how many ended, up to the width of the beam.
    """

    place: Int[Array, ""]
    logits: Float[Array, "batch beams classes"]
    ids: Int[Array, "batch beams length"]
    scores: Float[Array, "batch beams"]
    ended: Int[Array, "batch beams length"]
    ended_scores: Float[Array, "batch beams"]
    num_ended: Int[Array, " batch"]
    cache: Cache


def write(
    tokenizer: SpeechTokenizer,
    memory: Float[Array, "batch frames embed"],
    frame_mask: Bool[Array, "batch frames"],
    prompt: Int[Array, " prompt"],
    text: WhisperText,
    writing: WritingConfig,
) -> Int[Array, "batch written"]:
    """Returns the likeliest transcript that a beam finds, after the prompt, filled up with `end`.

    As OpenAI's Whisper searches: a clip is finished when as many transcripts ended as the beam is
    wide, and they compare by log-probability per id. With one beam that is greedy writing.
    """
    beams, length = writing.beams, min(writing.max_ids, text.max_ids)
    config, batch = tokenizer.config, len(memory)
    read = tokenizer.read_memory(memory, frame_mask)
    read = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), read)
    stack = config.stack(config.decoder_layers, block=1, cross=True)
    cache = stack.empty_cache(rows=batch * beams, length=length, dtype=config.dtype)
    started = jnp.broadcast_to(prompt, (batch * beams, len(prompt)))
    logits, cache = tokenizer.extend(started, cache, read)
    ids = jnp.full((batch, beams, length), text.end).at[..., : len(prompt)].set(prompt)
    first = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)
    none = jnp.full((batch, beams), NEVER)
    begun = Beam(
        jnp.int32(len(prompt)), logits[:, -1].reshape(batch, beams, -1), ids,
        jnp.broadcast_to(first, none.shape), ids, none, jnp.zeros(batch, jnp.int32), cache,
    )  # fmt: skip
    never = jnp.zeros(config.classes).at[jnp.array(text.suppressed, jnp.int32)].set(NEVER)
    at_first = never.at[jnp.array(text.suppressed_first, jnp.int32)].set(NEVER)

    def going_on(beam: Beam) -> Array:
        return (beam.place < length) & jnp.any(beam.num_ended < beams)

    def step(beam: Beam) -> Beam:
        barred = jnp.where(beam.place == len(prompt), at_first, never)
        beam, parents = _grown(beam, barred, text.end, begun=len(prompt))
        rows = (parents + beams * jnp.arange(batch)[:, None]).reshape(-1)
        cache = beam.cache if beams == 1 else beam.cache.take(rows)
        newest = jax.lax.dynamic_slice_in_dim(beam.ids, beam.place - 1, 1, axis=2)
        logits, cache = tokenizer.extend(newest.reshape(-1, 1), cache, read)
        return beam._replace(logits=logits.reshape(batch, beams, -1), cache=cache)

    beam = jax.lax.while_loop(going_on, step, begun)
    unfinished = (beam.num_ended < beams)[:, None]
    cut_off = jnp.where(unfinished, beam.scores / jnp.maximum(beam.place - len(prompt), 1), NEVER)
    scores = jnp.concatenate([beam.ended_scores, cut_off], axis=1)
    every = jnp.concatenate([beam.ended, beam.ids], axis=1)
    best = jnp.argmax(scores, axis=1)
    return jnp.take_along_axis(every, best[:, None, None], axis=1)[:, 0, len(prompt) :]


def _grown(
    beam: Beam, barred: Float[Array, " classes"], end: int, *, begun: int
) -> tuple[Beam, Int[Array, "batch beams"]]:
    """Returns the beam with an id more, and which transcript each was."""
    batch, beams, classes = beam.logits.shape
    follow = jax.nn.log_softmax(beam.logits + barred)
    scores, found = jax.lax.top_k(
        (beam.scores[..., None] + follow).reshape(batch, -1), min(2 * beams, beams * classes)
    )
    parents, new = found // classes, found % classes
    ids = jnp.take_along_axis(beam.ids, parents[..., None], axis=1)
    ids = ids.at[:, :, beam.place].set(new)
    ends = new == end
    # Those that go on, best first; those that end count if they are better than the last of them.
    order = jnp.argsort(ends, axis=1, stable=True)[:, :beams]
    better = ends & (jnp.cumsum(~ends, axis=1) < beams) & (beam.num_ended < beams)[:, None]
    by_id = jnp.where(better, scores / jnp.maximum(beam.place - begun, 1), NEVER)
    ended_scores, kept = jax.lax.top_k(jnp.concatenate([beam.ended_scores, by_id], axis=1), beams)
    ended = jnp.concatenate([beam.ended, ids], axis=1)
    grown = beam._replace(
        place=beam.place + 1,
        ids=jnp.take_along_axis(ids, order[..., None], axis=1),
        scores=jnp.take_along_axis(scores, order, axis=1),
        ended=jnp.take_along_axis(ended, kept[..., None], axis=1),
        ended_scores=ended_scores,
        num_ended=jnp.minimum(beam.num_ended + jnp.sum(better, axis=1), beams),
    )
    return grown, jnp.take_along_axis(parents, order, axis=1)
