"""Turns samples into log-mel frames as Whisper does (Radford et al., arXiv 2212.04356, 2.2).

Alignment: frame t is centred on sample `t * hop_length`, so it needs the samples up to
`t * hop_length + n_fft / 2` and no later ones; frames whose window passes the end of the clip see
the end mirrored. `MelConfig.floor` says what else a frame depends on: with `fixed` nothing, with
`running` on the loudest frame so far, with `clip` on the clip's loudest frame. `audio.mel_stream`
gives the frames of the former two while the samples come in, equal bit by bit.
"""

from functools import lru_cache
from typing import Any

import librosa
import numpy as np
import scipy.fft
import scipy.sparse
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax.audio.mel_config import WHISPER, MelConfig
from speechlm_jax.errors import UserError

DYNAMIC_RANGE = 8.0  # decades below the loudest value that Whisper keeps
LOUDEST = 1.5  # decades; the loudest value of speech at full scale, and of every clip at level peak
FIXED_FLOOR = LOUDEST - DYNAMIC_RANGE
# Decades; what has no louder value is taken for silence: its floor falls no further, and level
# `peak` does not lift it. It is 65 dB below speech at full scale.
QUIETEST_PEAK = -5.0
SMALLEST_POWER = 1e-10
FRAMES_PER_PIECE = 128  # their spectra fit the cache of a core


def wav_to_mel(
    wav: Float[ndarray, " samples"], config: MelConfig = WHISPER
) -> Float[ndarray, "mel_frames mels"]:
    """Turns samples into log-mel frames of about [-1, 1.5], float32.

    `mel_frames == samples // hop_length`.

    Raises:
      ValueError: the samples are too few for one frame.
      UserError: they are integers.
    """
    if len(wav) < fewest_samples(config):
        raise ValueError(f"{len(wav)} samples are too few for one mel frame")
    half = config.n_fft // 2
    padded = np.pad(as_samples(wav), (half, half), mode="reflect")
    return levelled(samples_to_log(padded, config, frames=len(wav) // config.hop_length), config)


def as_samples(wav: ndarray) -> Float[ndarray, " samples"]:
    """Returns samples as float32; UserError if they are integers, whose scale is another."""
    wav = np.asarray(wav)
    if wav.dtype.kind != "f":
        raise UserError(f"samples: are {wav.dtype}; give floats in [-1, 1] (int16: over 32768)")
    return wav.astype(np.float32, copy=False)


def fewest_samples(config: MelConfig) -> int:
    """Returns the length of the shortest clip that has a frame."""
    return max(config.hop_length, config.n_fft // 2 + 1)


def samples_to_log(
    padded: Float[ndarray, " samples"], config: MelConfig, *, frames: int
) -> Float[ndarray, "mel_frames mels"]:
    """Returns log10 of the mel power of the first `frames` windows, float32, without a floor.

    A value is a function of its window alone, bit by bit, however many windows there are.
    """
    smallest = SMALLEST_POWER if config.level == "kept" else 10 ** (QUIETEST_PEAK - DYNAMIC_RANGE)
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    window, filters = _window(config.n_fft, config.win_length), _sparse_filters(config)
    log = np.empty((frames, config.num_mels), np.float32)
    room = np.empty((min(frames, FRAMES_PER_PIECE), config.n_fft), np.float32)
    for first in range(0, frames, FRAMES_PER_PIECE):
        piece = windows[first : min(first + FRAMES_PER_PIECE, frames)]
        windowed = np.multiply(piece, window, out=room[: len(piece)])
        spectrum: Any = scipy.fft.rfft(windowed, axis=-1, overwrite_x=True, workers=1)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        mel = filters @ power.T
        np.log10(np.maximum(mel, np.float32(smallest), out=mel), out=mel)
        log[first : first + len(piece)] = mel.T
    return log


def levelled(
    log: Float[ndarray, "mel_frames mels"], config: MelConfig, *, heard: float = QUIETEST_PEAK
) -> Float[ndarray, "mel_frames mels"]:
    """Applies floor and level, and scales decades to Whisper's range.

    Args:
      heard: loudest value of the frames before these, for floor `running`.
    """
    if config.floor == "fixed":
        made = np.maximum(log, np.float32(FIXED_FLOOR))
    else:
        peak = _peak(log, config, heard)
        made = np.maximum(log, peak - np.float32(DYNAMIC_RANGE))
        if config.level == "peak":
            made += np.float32(LOUDEST) - peak
    made += 4
    made /= 4
    return made


def _peak(log: ndarray, config: MelConfig, heard: float) -> Any:
    """Returns the loudest value of all frames, or of each frame and those before it."""
    least = np.float32(max(heard, QUIETEST_PEAK))
    if config.floor == "clip":
        return log.max(initial=least)
    return np.maximum.accumulate(log.max(axis=1, keepdims=True, initial=least), axis=0)


def mel_to_log(
    mel: Float[ndarray, "mel_frames mels"],
) -> Float[ndarray, "mel_frames mels"]:
    """Undoes the scaling of `levelled`: returns decades."""
    return mel * 4 - 4


def mel_to_power(
    mel: Float[ndarray, "mel_frames mels"],
) -> Float[ndarray, "mel_frames mels"]:
    """Undoes the logarithm and the scaling of `wav_to_mel`: returns power per mel band.

    At level `peak` it is the power of the clip played at full scale.
    """
    return np.power(10.0, mel_to_log(np.asarray(mel, np.float64)))


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
def _sparse_filters(config: MelConfig) -> Any:
    """Returns the filters as a sparse matrix: a bin lies in two of them at most.

    Unlike a matrix library's, its product sums the bins of every frame in the same order.
    """
    return scipy.sparse.csr_array(mel_filters(config))


@lru_cache(maxsize=8)
def _window(n_fft: int, win_length: int) -> Float[ndarray, " n_fft"]:
    """Returns a periodic Hann window of `win_length` in the middle of `n_fft` zeros."""
    hann = np.hanning(win_length + 1)[:-1]
    left = (n_fft - win_length) // 2
    return np.pad(hann, (left, n_fft - win_length - left)).astype(np.float32)
