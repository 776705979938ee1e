"""Turns samples into log-mel frames as Whisper does (Radford et al., arXiv 2212.04356, 2.2).

Alignment: frame t is centred on sample `t * hop_length`, so it needs the samples up to
`t * hop_length + n_fft / 2` and no later ones; frames whose window passes the end of the clip see
the end mirrored. With `floor="fixed"` a frame depends on its own window alone, so a stream gives
the same frames as the whole clip; with `floor="clip"` it also depends on the clip's loudest frame.
"""

from functools import lru_cache

import librosa
import numpy as np
import scipy.fft
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax.audio.mel_config import WHISPER, MelConfig

DYNAMIC_RANGE = 8.0  # decades below the loudest frame that Whisper keeps
# Decades; speech at full scale peaks near 1.5, so this is the floor that `clip` gives it.
FIXED_FLOOR = -6.5
SMALLEST_POWER = 1e-10


def wav_to_mel(
    wav: Float[ndarray, " samples"], config: MelConfig = WHISPER
) -> Float[ndarray, "mel_frames mels"]:
    """Turns samples into log-mel frames of about [-1, 1.5], float32.

    `mel_frames == samples // hop_length`.

    Raises:
      ValueError: the samples are too few for one frame.
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
    """Undoes the logarithm and the normalisation of `wav_to_mel`: returns power per mel band."""
    return np.power(10.0, np.asarray(mel, np.float64) * 4.0 - 4.0)


@lru_cache(maxsize=8)
def mel_filters(config: MelConfig) -> Float[ndarray, "mels bins"]:
    """Returns the mel filter bank: Slaney's scale, each filter of unit area."""
    return librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
    )


@lru_cache(maxsize=8)
def _window(n_fft: int, win_length: int) -> Float[ndarray, " n_fft"]:
    """Returns a periodic Hann window of `win_length` in the middle of `n_fft` zeros."""
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
