"""Mel frames -> codes -> text ids for many clips, by a trained speech tokenizer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, Float, Int, PyTree, ndarray
from speechlm_jax.padding import run_in_batches
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.stage import functional


class Transcriber:
    """A trained tokenizer: mel frames to codes, and codes to text ids.

    Text ids are decoded greedily from the CTC over the codes. The attention decoder serves only as
    supervision (at small sizes it reads far worse: see docs/log.md).
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
            frame_mask = jnp.arange(codes.shape[1])[None] < lengths[:, None]
            return jnp.argmax(tokenizer.ctc(tokenizer.codes_to_memory(codes, frame_mask)), axis=-1)

        self._encode, self._read = encode, read

    def mels_to_codes(
        self, mels: Sequence[Float[ndarray, "_mel_frames mels"]]
    ) -> list[Int[ndarray, " _frames"]]:
        """Returns the codes of each clip, in order."""
        per_code = self.config.encoder.mel_frames_per_code
        outputs = run_in_batches(
            mels,
            lambda _, batch, lengths: np.asarray(self._encode(batch, lengths)),
            batch_size=self._batch_size,
            multiple=2 * self.config.encoder.block_mel_frames,
            by_length=True,
            dtype=np.float32,
        )
        return [codes[: len(mel) // per_code] for mel, codes in zip(mels, outputs, strict=True)]

    def codes_to_ids(self, codes: Sequence[Int[ndarray, " _frames"]]) -> list[list[int]]:
        """Returns the text ids of each sequence of codes."""
        best = run_in_batches(
            codes,
            lambda _, batch, lengths: np.asarray(self._read(batch, lengths)),
            batch_size=self._batch_size,
            multiple=32,
            by_length=True,
        )
        return [
            collapse(row[: len(clip)], blank=self.config.blank)
            for clip, row in zip(codes, best, strict=True)
        ]


def collapse(best: Int[ndarray, " frames"], *, blank: int) -> list[int]:
    """Decodes the best label of each frame by greedy CTC: merges repeats and drops blanks."""
    merged = best[np.insert(best[1:] != best[:-1], 0, True)] if len(best) else best
    return [int(label) for label in merged if label != blank]
