"""Turns samples into log-mel frames as they come in: bit by bit those of the whole clip."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax.audio.mel import (
    QUIETEST_PEAK,
    as_samples,
    fewest_samples,
    levelled,
    samples_to_log,
)
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.errors import UserError


class MelStream:
    """The mel frames of one clip, each as soon as the last sample of its window is there.

    All frames of `push` and then `finish`, joined, are `wav_to_mel` of all samples. Between calls
    it keeps the samples of two windows at most.
    """

    def __init__(self, config: MelConfig):
        """Raises UserError for floor `clip`, which depends on samples that are still to come."""
        if config.floor == "clip":
            raise UserError(
                "floor: clip depends on the loudest frame of the whole clip, which a stream has "
                "not heard yet; give floor=running (the loudest so far) or floor=fixed"
            )
        self._config = config
        self._half = config.n_fft // 2
        self._kept = np.zeros(0, np.float32)  # samples, mirrored ones before the first
        self._dropped = 0  # samples that were kept
        self._heard = 0  # samples that were pushed
        self._made = 0  # frames
        self._peak = QUIETEST_PEAK
        self._finished = False

    def push(self, samples: ndarray) -> Float[ndarray, "mel_frames mels"]:
        """Takes the next samples, any number of them, and returns the frames that became certain.

        Raises:
          UserError: the samples are integers, or the stream is finished.
        """
        if self._finished:
            raise UserError("the stream of mel frames is finished; make another for the next clip")
        samples = as_samples(samples)
        before, self._heard = self._heard, self._heard + len(samples)
        self._kept = np.concatenate([self._kept, samples])
        if self._heard <= self._half:
            return self._none()
        if before <= self._half:
            self._kept = np.concatenate([self._kept[self._half : 0 : -1], self._kept])
        return self._next_frames()

    def finish(self) -> Float[ndarray, "mel_frames mels"]:
        """Returns the frames whose windows pass the end; a clip too short for a frame has none."""
        self._finished = True
        if self._heard < fewest_samples(self._config):
            return self._none()
        mirrored = self._kept[-self._half - 1 : -1][::-1]
        self._kept = np.concatenate([self._kept, mirrored])
        return self._next_frames()

    def _next_frames(self) -> Float[ndarray, "mel_frames mels"]:
        """Returns the frames whose windows are whole; drops what no later frame needs."""
        config, hop = self._config, self._config.hop_length
        padded = self._kept[self._made * hop - self._dropped :]
        whole = (len(padded) - config.n_fft) // hop + 1
        frames = min(whole, self._heard // hop - self._made)
        if frames < 1:
            return self._none()
        log = samples_to_log(padded, config, frames=frames)
        made = levelled(log, config, heard=self._peak)
        self._peak = max(self._peak, float(log.max()))
        self._made += frames
        # The end mirrors the last half window.
        drop = min(self._made * hop - self._dropped, len(self._kept) - self._half - 1)
        self._kept, self._dropped = self._kept[drop:].copy(), self._dropped + drop
        return made

    def _none(self) -> Float[ndarray, "mel_frames mels"]:
        return np.zeros((0, self._config.num_mels), np.float32)
