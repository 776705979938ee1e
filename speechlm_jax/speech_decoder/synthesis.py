"""Codes -> mel frames -> samples with a trained flow."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, Float, Int, PyTree, ndarray
from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_decoder.stage import functional


class SpeechDecoder:
    """A trained flow that turns codes into mel frames; the vocoder turns those into samples."""

    def __init__(
        self, config: FlowConfig, params: PyTree, *, batch_size: int = 32, multiple: int = 32
    ):
        self.config = config
        self._batch_size = batch_size
        self._multiple = multiple
        model = functional(config)

        @partial(jax.jit, static_argnames="steps")
        def solve(
            codes: Array,
            lengths: Array,
            voices: Array,
            seeds: Array,
            temperature: Array,
            steps: int,
        ) -> Array:
            # A key for each patch of each clip: neither padding nor the batch changes its noise.
            keys = jax.vmap(jax.random.key)(seeds)
            patches = jnp.arange(codes.shape[1] * config.patches_per_code)
            keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, patches))(keys)
            size = (config.frames_per_patch * config.num_mels,)
            noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, size)))(keys)
            noise = temperature * noise
            return model.bind(params).codes_to_mel(codes, lengths, voices, noise, steps=steps)

        self._solve = solve

    def codes_to_mel(
        self,
        codes: Sequence[Int[ndarray, " _frames"]],
        *,
        voices: Sequence[int] | int = 0,
        steps: int = 10,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Float[ndarray, "_mel_frames mels"]]:
        """Mel frames of each clip; `voices` count from 1, 0 lets the flow choose.

        `temperature` scales the noise that the flow starts from: 1 is what it was trained with;
        less gives plainer and, at small sizes, more intelligible speech (docs/log.md).
        Clip i draws its noise from `seed + i` alone.
        """
        voices = [voices] * len(codes) if isinstance(voices, int) else list(voices)
        mels = []
        for first in range(0, len(codes), self._batch_size):
            rows = codes[first : first + self._batch_size]
            longest = max(1, *map(len, rows)) if rows else 1
            size = -(-longest // self._multiple) * self._multiple
            batch = np.zeros((self._batch_size, size), np.int32)
            lengths = np.zeros(self._batch_size, np.int32)
            chosen = np.zeros(self._batch_size, np.int32)
            for row, clip in enumerate(rows):
                batch[row, : len(clip)] = clip
                lengths[row] = len(clip)
                chosen[row] = voices[first + row]
            made = np.asarray(
                self._solve(
                    batch,
                    lengths,
                    chosen,
                    (seed + first + np.arange(self._batch_size)).astype(np.uint32),
                    jnp.float32(temperature),
                    steps,
                )
            )
            per_code = self.config.mel_frames_per_code
            mels += [mel[: len(clip) * per_code] for mel, clip in zip(made, rows, strict=False)]
        return mels
