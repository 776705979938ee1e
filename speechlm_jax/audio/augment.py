"""Varies the log-mel frames of training clips, so that a few speakers stand for many.

Everything is drawn from (seed, row number): a row is varied in the same way whenever, and on
whichever host, it is read. Values are log-mel as `audio.mel` makes them: 40 dB are 1.0.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache

import librosa
import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from speechlm_jax import config as configs
from speechlm_jax.audio.mel import (
    DYNAMIC_RANGE,
    LOUDEST,
    SMALLEST_POWER,
    MelConfig,
    mel_to_power,
)

DB = 1 / 40  # log-mel units: log10 of the power, divided by 4
COLOUR_POINTS = 5  # few, as the response of a microphone or a room is smooth
WARP_TO = 0.8  # fraction of the band that is scaled; the rest above it is squeezed or stretched


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the variation of clips; every draw is uniform, and 0 (1 clip) varies nothing.

    Attributes:
      max_joined: clips of one speaker in a row, joined while they fit: 1 to this many.
      max_gap_frames: mel frames of background before, between and after the clips, at most.
      trim_frames: mel frames cut off each end of a clip, at most, and no more than a quarter of it:
        recordings are not cut alike, and weak sounds at their ends are the first to go.
      warp_ratio: frequencies are scaled by 1 +- this: the length of the vocal tract and the pitch
        (Jaitly and Hinton 2013). Drawn once per row, as is all that follows except `stretch_ratio`.
      stretch_ratio: durations are scaled by 1 +- this.
      gain_db: change of level, +- this; mel frames of level `peak` do not show it.
      colour_db: a smooth curve over the mel bins, +- this: the microphone.
      noise_db: steady noise fills the dynamic range from the floor, 80 dB under the
        loudest value, to at most this many dB above it.
      num_masks: bands of mel bins, and as many stretches of time, set to the mean of the row
        (SpecAugment, Park et al. 2019).
      mask_mels: widest band, in mel bins.
      mask_frames: longest stretch, in mel frames.
      seed: seed of the draws.
    """

    max_joined: int = 1
    max_gap_frames: int = 0
    trim_frames: int = 0
    warp_ratio: float = 0.0
    stretch_ratio: float = 0.0
    gain_db: float = 0.0
    colour_db: float = 0.0
    noise_db: float = 0.0
    num_masks: int = 0
    mask_mels: int = 0
    mask_frames: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        configs.at_least(self, 0, *(field.name for field in dataclasses.fields(self)))
        configs.at_least(self, 1, "max_joined")
        configs.at_least(self, 0, "warp_ratio", "stretch_ratio", most=0.99)


@dataclasses.dataclass(frozen=True)
class Varied:
    """A row to train on: the numbers of its clips in order, and their varied mel frames."""

    numbers: tuple[int, ...]
    mel: Float[ndarray, "mel_frames mels"]


class Augmenter:
    """A source of varied rows, each a function of (config, row number, clip number)."""

    def __init__(
        self,
        config: AugmentConfig,
        mel_config: MelConfig,
        load: Callable[[int], Float[ndarray, "mel_frames mels"]],
        speakers: Sequence[str],
    ):
        """`load(number)` returns a clip's mel frames; `speakers[number]` is the clip's speaker."""
        self.config, self._mel_config, self._load = config, mel_config, load
        self._speakers = speakers
        self._clips_of: dict[str, list[int]] = {}
        for number, speaker in enumerate(speakers):
            self._clips_of.setdefault(speaker, []).append(number)

    def __call__(self, number: int, *, row: int, limit: int) -> Varied:
        """Returns row `row`: clip `number` and others of its speaker, in `limit` frames at most."""
        rng = np.random.default_rng((self.config.seed, row))
        clips = self._clips_of[self._speakers[number]]
        wanted = 1 + int(rng.integers(self.config.max_joined))
        others = [clips[i] for i in rng.integers(len(clips), size=wanted - 1)]
        joined = _Joined(limit)
        numbers = [n for n in (number, *others) if joined.add(self._clip(n, limit, rng))]
        # Clip `number` may stand anywhere in its row.
        order = rng.permutation(len(numbers))
        mel = joined.frames([int(i) for i in order], self.config.max_gap_frames, rng)
        mel = vary(mel, self.config, self._mel_config, rng)
        return Varied(tuple(numbers[i] for i in order), mel)

    def _clip(self, number: int, limit: int, rng: Generator) -> ndarray:
        """Returns a clip, trimmed and stretched; one that fits the limit still does."""
        mel = self._load(number)
        most = min(self.config.trim_frames, len(mel) // 4)
        first, last = rng.integers(most + 1, size=2)
        mel = mel[first : len(mel) - last]
        factor = 1 + self.config.stretch_ratio * rng.uniform(-1, 1)
        return stretch(mel, frames=min(max(1, round(len(mel) * factor)), max(limit, len(mel))))


class _Joined:
    """The clips of a row, added as long as they fit."""

    def __init__(self, limit: int):
        self.limit, self.clips = limit, list[ndarray]()

    @property
    def room(self) -> int:
        return self.limit - sum(map(len, self.clips))

    def add(self, mel: ndarray) -> bool:
        fits = not self.clips or len(mel) <= self.room
        if fits:
            self.clips.append(mel)
        return fits

    def frames(self, order: Sequence[int], max_gap_frames: int, rng: Generator) -> ndarray:
        """Returns the clips in order, with gaps of background as far as there is room for them."""
        clips = [self.clips[i] for i in order]
        gaps = rng.integers(max_gap_frames + 1, size=len(clips) + 1)
        gaps = np.diff(np.minimum(np.cumsum(gaps), max(self.room, 0)), prepend=0)
        quiet = np.concatenate(clips).min(axis=0)
        parts = [np.tile(quiet, (gaps[0], 1))]
        for clip, gap in zip(clips, gaps[1:], strict=True):
            parts += [clip, np.tile(quiet, (gap, 1))]
        return np.concatenate(parts).astype(np.float32)


def vary(
    mel: Float[ndarray, "mel_frames mels"],
    config: AugmentConfig,
    mel_config: MelConfig,
    rng: Generator,
) -> Float[ndarray, "mel_frames mels"]:
    """Returns frames of another voice, microphone, level and noise, float32; masks come last."""
    if config.warp_ratio:
        mel = warp(mel, mel_config, factor=1 + config.warp_ratio * rng.uniform(-1, 1))
    if config.colour_db:
        points = rng.uniform(-config.colour_db, config.colour_db, COLOUR_POINTS) * DB
        mel = mel + smooth_curve(points, mels=mel.shape[1])
    if config.noise_db:
        above = config.noise_db * rng.uniform()
        mel = add_noise(mel, level=float(mel.max()) - DYNAMIC_RANGE / 4 + above * DB, rng=rng)
    if config.gain_db:
        mel = mel + config.gain_db * rng.uniform(-1, 1) * DB
    mel = _levelled(mel, mel_config)
    for _ in range(config.num_masks):
        mel = mask(mel, mels=config.mask_mels, frames=config.mask_frames, rng=rng)
    return np.asarray(mel, np.float32)


def _levelled(mel: ndarray, mel_config: MelConfig) -> ndarray:
    """Applies the floor and the level that `wav_to_mel` gives a clip of such frames."""
    if mel_config.floor == "fixed":
        return mel
    peak = mel.max()
    if mel_config.floor == "running":
        peak = np.maximum.accumulate(mel.max(axis=1, keepdims=True), axis=0)
    mel = np.maximum(mel, peak - DYNAMIC_RANGE / 4)
    return mel if mel_config.level == "kept" else mel - peak + (LOUDEST + 4) / 4


def stretch(
    mel: Float[ndarray, "mel_frames mels"], *, frames: int
) -> Float[ndarray, "new_frames mels"]:
    """Returns the same sounds in `frames` frames, linearly interpolated."""
    if frames == len(mel):
        return mel
    return _take(mel, np.linspace(0, len(mel) - 1, frames))


def warp(
    mel: Float[ndarray, "mel_frames mels"], mel_config: MelConfig, *, factor: float
) -> Float[ndarray, "mel_frames mels"]:
    """Moves sounds at f Hz to `factor * f`, piecewise linearly, so that the band stays full.

    A factor above 1 is a shorter vocal tract (Jaitly and Hinton 2013, section 2). The upper edge of
    the band stays where it is.
    """
    top = mel_config.f_max or mel_config.sample_rate / 2
    centres = _centres(mel.shape[1] + 2, mel_config.f_min, top)
    knee = WARP_TO * top * min(factor, 1.0)
    source = np.interp(centres, [0.0, knee, top], [0.0, knee / factor, top])
    places = np.interp(source, centres, np.arange(-1, mel.shape[1] + 1))
    return _take(mel.T, np.clip(places[1:-1], 0, mel.shape[1] - 1)).T


def smooth_curve(points: Float[ndarray, " points"], *, mels: int) -> Float[ndarray, " mels"]:
    """Returns a piecewise linear curve through evenly spaced points."""
    return np.interp(np.linspace(0, len(points) - 1, mels), np.arange(len(points)), points)


def add_noise(
    mel: Float[ndarray, "mel_frames mels"], *, level: float, rng: Generator
) -> Float[ndarray, "mel_frames mels"]:
    """Adds white noise whose mean power is that of log-mel value `level`."""
    noise = mel_to_power(np.array([[level]])) * rng.exponential(size=mel.shape)
    return (np.log10(np.maximum(mel_to_power(mel) + noise, SMALLEST_POWER)) + 4.0) / 4.0


def mask(
    mel: Float[ndarray, "mel_frames mels"], *, mels: int, frames: int, rng: Generator
) -> Float[ndarray, "mel_frames mels"]:
    """Sets a band of up to `mels` bins and up to `frames` frames to the mean (SpecAugment)."""
    mel, mean = np.array(mel), mel.mean()
    for axis, widest in ((1, mels), (0, frames)):
        width = int(rng.integers(min(widest, mel.shape[axis] // 2) + 1))
        first = int(rng.integers(mel.shape[axis] - width + 1))
        mel[(slice(None),) * axis + (slice(first, first + width),)] = mean
    return mel


@lru_cache(maxsize=8)
def _centres(number: int, f_min: float, f_max: float) -> ndarray:
    """Returns the Hz of evenly spaced places on the mel scale, including the edges of the band."""
    return librosa.mel_frequencies(number, fmin=f_min, fmax=f_max)


def _take(values: ndarray, places: ndarray) -> ndarray:
    """Returns rows of `values` at fractional places, interpolated linearly between neighbours."""
    low = np.minimum(places.astype(int), len(values) - 1)
    high = np.minimum(low + 1, len(values) - 1)
    share = (places - low)[:, None].astype(values.dtype)
    return values[low] * (1 - share) + values[high] * share
