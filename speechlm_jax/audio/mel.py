"""Samples -> log-mel frames, as Whisper computes them (Radford et al., arXiv 2212.04356, 2.2).

Alignment: frame t is centred on sample `t * hop_length`, so it needs the samples up to
`t * hop_length + n_fft / 2` and no later one; only frames whose window passes the end of the clip
see it mirrored there. With `floor="fixed"` a frame depends on its own window alone, so a stream
gives the same frames as the whole clip; with `floor="clip"` it also depends on the clip's loudest
frame.
"""

import dataclasses
from functools import lru_cache
from typing import Literal

import librosa
import numpy as np
import scipy.fft
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError

DYNAMIC_RANGE = 8.0  # decades below the loudest frame that Whisper keeps
# Decades; speech at full scale peaks near 1.5, so this is the floor that `clip` gives it.
FIXED_FLOOR = -6.5
SMALLEST_POWER = 1e-10


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """How samples become mel frames.

    Attributes:
      sample_rate: Hz.
      n_fft: samples of a transform; win_length: samples of the Hann window inside it.
      hop_length: samples between frames.
      num_mels: mel bins, Slaney's scale and area normalisation.
      floor: `clip`: 8 decades below the clip's maximum (Whisper); `fixed`: one value (streams).
      f_min, f_max: Hz; None is half the sample rate.
    """

    sample_rate: int = 16_000
    n_fft: int = 400
    win_length: int = 400
    hop_length: int = 160
    num_mels: int = 80
    floor: Literal["clip", "fixed"] = "clip"
    f_min: float = 0.0
    f_max: float | None = None

    def __post_init__(self) -> None:
        sizes = ("sample_rate", "n_fft", "win_length", "hop_length", "num_mels")
        configs.at_least(self, 1, *sizes)
        configs.at_least(self, 0, "f_min")
        if self.win_length > self.n_fft:
            raise UserError(f"win_length: {self.win_length} exceeds n_fft, {self.n_fft}")
        most = self.sample_rate / 2 if self.f_max is None else self.f_max
        if not self.f_min < most <= self.sample_rate / 2:
            raise UserError(
                f"f_max: {most}; give more than f_min, {self.f_min}, up to half the sample rate"
            )

    @property
    def mel_rate_hz(self) -> float:
        """Mel frames a second."""
        return self.sample_rate / self.hop_length


WHISPER = MelConfig()


def wav_to_mel(
    wav: Float[ndarray, " samples"], config: MelConfig = WHISPER
) -> Float[ndarray, "mel_frames mels"]:
    """Turns samples into log-mel frames of about [-1, 1.5], float32.

    `mel_frames == samples // hop_length`; ValueError if that is none.
    """
    if len(wav) < max(config.hop_length, config.n_fft // 2 + 1):
        raise ValueError(f"{len(wav)} samples are too few for one mel frame")
    power = _power(np.asarray(wav, np.float32), config)
    log = np.log10(np.maximum(power @ mel_filters(config).T, SMALLEST_POWER))
    floor = log.max() - DYNAMIC_RANGE if config.floor == "clip" else FIXED_FLOOR
    return ((np.maximum(log, floor) + 4.0) / 4.0).astype(np.float32)


def mel_to_power(
    mel: Float[ndarray, "mel_frames mels"],
) -> Float[ndarray, "mel_frames mels"]:
    """Undoes the logarithm and the normalisation of `wav_to_mel`: power in each mel band."""
    return np.power(10.0, np.asarray(mel, np.float64) * 4.0 - 4.0)


@lru_cache(maxsize=8)
def mel_filters(config: MelConfig) -> Float[ndarray, "mels bins"]:
    """The mel filter bank: Slaney's scale, each filter of unit area."""
    return librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
    )


@lru_cache(maxsize=8)
def _window(n_fft: int, win_length: int) -> Float[ndarray, " n_fft"]:
    """A periodic Hann window of `win_length`, in the middle of `n_fft` zeros."""
    hann = np.hanning(win_length + 1)[:-1]
    left = (n_fft - win_length) // 2
    return np.pad(hann, (left, n_fft - win_length - left)).astype(np.float32)


def _power(wav: Float[ndarray, " samples"], config: MelConfig) -> Float[ndarray, "mel_frames bins"]:
    half = config.n_fft // 2
    padded = np.pad(wav, (half, half), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    windows = windows[: len(wav) // config.hop_length]
    windows = windows * _window(config.n_fft, config.win_length)
    return np.square(np.abs(np.asarray(scipy.fft.rfft(windows, axis=-1))))
