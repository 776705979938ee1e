"""Codes -> text by the tokenizer's own reader, and mel -> codes for many clips."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, Float, Int, PyTree, ndarray
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.stage import functional


class Reader:
    """A trained tokenizer: mel spectrograms to codes, and codes to text ids.

    Transcripts are read greedily from the CTC over the codes; the attention decoder supervises
    only (at small sizes it reads far worse: see docs/log.md).
    """

    def __init__(
        self,
        config: SpeechTokenizerConfig,
        params: PyTree,
        variables: PyTree,
        *,
        batch_size: int = 64,
    ):
        self.config = config
        self.codebook = np.asarray(variables["quantizer"]["codebook"])
        self._batch_size = batch_size
        model = functional(config)

        @jax.jit
        def encode(mel: Array, lengths: Array) -> Array:
            return model.bind(params, variables).mel_to_codes(mel, lengths)

        @jax.jit
        def read(codes: Array, lengths: Array) -> Array:
            tokenizer = model.bind(params, variables)
            frames = jnp.arange(codes.shape[1])[None] < lengths[:, None]
            return jnp.argmax(tokenizer.ctc(tokenizer.codes_to_memory(codes, frames)), axis=-1)

        self._encode, self._read = encode, read

    def mels_to_codes(
        self, mels: Sequence[Float[ndarray, "_mel_frames mels"]]
    ) -> list[Int[ndarray, " _frames"]]:
        """Codes of each clip, in order."""
        per_code = self.config.encoder.mel_frames_per_code
        outputs = self._batched(
            mels, self._encode, multiple=2 * self.config.encoder.block_mel_frames
        )
        return [codes[: len(mel) // per_code] for mel, codes in zip(mels, outputs, strict=True)]

    def codes_to_ids(self, codes: Sequence[Int[ndarray, " _frames"]]) -> list[list[int]]:
        """Text ids that each sequence of codes says."""
        best = self._batched(codes, self._read, multiple=32)
        return [
            collapse(row[: len(clip)], blank=self.config.blank)
            for clip, row in zip(codes, best, strict=True)
        ]

    def _batched(
        self, items: Sequence[np.ndarray], apply: Callable[..., Array], *, multiple: int
    ) -> list[np.ndarray]:
        """Applies a jitted function to padded batches of items of like length, in few shapes."""
        order = sorted(range(len(items)), key=lambda i: len(items[i]))
        outputs: list[np.ndarray] = [np.zeros(0)] * len(items)
        for first in range(0, len(order), self._batch_size):
            chosen = order[first : first + self._batch_size]
            longest = max(len(items[chosen[-1]]), 1)
            size = -(-longest // multiple) * multiple
            shape = (self._batch_size, size, *items[chosen[0]].shape[1:])
            batch = np.zeros(shape, np.float32 if len(shape) == 3 else np.int32)
            lengths = np.zeros(self._batch_size, np.int32)
            for row, i in enumerate(chosen):
                batch[row, : len(items[i])] = items[i]
                lengths[row] = len(items[i])
            for row, output in zip(chosen, np.asarray(apply(batch, lengths)), strict=False):
                outputs[row] = output
        return outputs


def collapse(best: Int[ndarray, " frames"], *, blank: int) -> list[int]:
    """Greedy CTC: repeats merged, blanks dropped."""
    merged = best[np.insert(best[1:] != best[:-1], 0, True)] if len(best) else best
    return [int(label) for label in merged if label != blank]
