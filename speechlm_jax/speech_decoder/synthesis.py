"""Codes -> mel frames -> samples with a trained flow."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, Float, Int, PyTree, ndarray
from speechlm_jax.audio.griffin_lim import mel_to_wav
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.padding import run_in_batches
from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_decoder.stage import functional


class SpeechDecoder:
    """A trained flow that turns codes into mel frames, and with Griffin-Lim into samples."""

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
            # Each patch of each clip has its own key, so its noise depends on no padding or batch.
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
        """Returns the mel frames of each clip.

        Args:
          voices: voice numbers from 1, of each clip or of all; 0 stands for any voice.
          steps: Euler steps of the solver.
          temperature: scale of the noise that the flow starts from. Training uses 1; less gives
            plainer and, at small sizes, more intelligible speech (docs/log.md).
          seed: seed of the noise; that of clip i follows from `seed + i` alone.
        """
        of_clip = np.broadcast_to(np.array(voices, np.int32), len(codes))

        def run(numbers: np.ndarray, batch: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            seeds = (seed + numbers).astype(np.uint32)
            scale = jnp.float32(temperature)
            return np.asarray(self._solve(batch, lengths, of_clip[numbers], seeds, scale, steps))

        mels = run_in_batches(codes, run, batch_size=self._batch_size, multiple=self._multiple)
        per_code = self.config.mel_frames_per_code
        return [mel[: len(clip) * per_code] for mel, clip in zip(mels, codes, strict=True)]

    def codes_to_wav(
        self,
        codes: Sequence[Int[ndarray, " _frames"]],
        *,
        mel: MelConfig,
        voices: Sequence[int] | int = 0,
        seed: int = 0,
    ) -> list[Float[ndarray, " _samples"]]:
        """Returns the samples of each clip, in [-1, 1] and at the sample rate of `mel`.

        `mel` must be the mel settings that the flow was trained with. `voices` and `seed` are those
        of `codes_to_mel`; `seed` also gives the first phases of Griffin-Lim.
        """
        mels = self.codes_to_mel(codes, voices=voices, seed=seed)
        return [mel_to_wav(one, mel, seed=seed) for one in mels]
