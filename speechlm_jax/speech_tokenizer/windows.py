"""Windows of a recording, each of which is encoded alone: one rule for files, corpora and streams.

Window k takes `seconds` of samples, from `k * (seconds - context_seconds)` on, and knows nothing of
the others: its mel frames, positions and attention begin anew. The codes of the first
`context_seconds` of every window but the first are dropped, as the window before has made them.
With no context this is the rule of the released GLM-4-Voice tokenizer (windows of 30 s).
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.arrays import Float, Int, ndarray
from speechlm_jax.audio.mel import fewest_samples, wav_to_mel
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.errors import UserError
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig

_CLOSE = 1e-6  # of a sample: what a float of seconds may be off


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """Settings of windows.

    Attributes:
      seconds: length of a window.
      context_seconds: length that a window shares with the one before it, whose codes are dropped.
    """

    seconds: float = 30.0
    context_seconds: float = 0.0

    def __post_init__(self) -> None:
        configs.above_0(self, "seconds")
        configs.at_least(self, 0, "context_seconds")
        if not self.context_seconds < self.seconds:
            raise UserError(
                f"context_seconds: {self.context_seconds:g}; give less than seconds, "
                f"{self.seconds:g}"
            )


class WindowMel(NamedTuple):
    """Mel frames of a window, the first `heard` of which are the recording's.

    What follows them is silence that fills up the last code (`EncoderConfig.tail`).
    """

    frames: Float[ndarray, "_mel_frames mels"]
    heard: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """Sizes of the windows of one tokenizer.

    Attributes:
      samples, mel_frames: of a whole window.
      context_samples, context_codes: of what a window shares with the one before it.
      model: config of the tokenizer.
    """

    samples: int
    mel_frames: int
    context_samples: int
    context_codes: int
    model: SpeechTokenizerConfig

    @classmethod
    def of(cls, window: WindowConfig, model: SpeechTokenizerConfig) -> "Windows":
        """Returns the sizes for a tokenizer.

        Raises:
          UserError: a window is no whole number of mel frames or holds no code, or its context is
            no whole number of codes.
        """
        mel, per_code = model.mel, model.encoder.mel_frames_per_code
        frames = _whole(window.seconds, mel.sample_rate / mel.hop_length, "seconds", "mel frames")
        codes = _whole(window.context_seconds, model.frame_rate_hz, "context_seconds", "codes")
        if frames < per_code:
            raise UserError(f"seconds: {window.seconds:g} is shorter than one code")
        size = mel.hop_length
        context = codes * per_code * size
        return cls(frames * size, frames, context, codes, model)

    @property
    def mel(self) -> MelConfig:
        """Settings of the mel frames."""
        return self.model.mel

    def heard(self, samples: int) -> int:
        """Returns the mel frames of a window, or of its end, that are the recording's own."""
        size = self.mel.hop_length
        return samples // size if self.model.encoder.tail == "drop" else -(-samples // size)

    def silence(self, samples: int) -> Float[ndarray, " _samples"]:
        """Returns what fills up the last code of a window, or of its end; nothing if none does."""
        return np.zeros(self.model.padded_samples(samples) - samples, np.float32)

    def num_codes(self, mel_frames: int) -> int:
        """Returns the codes of a window, or of its end, with this many mel frames."""
        return self.model.encoder.num_codes(mel_frames)

    def cut(
        self, blocks: Iterable[Float[ndarray, " _samples"]]
    ) -> Iterator[Float[ndarray, " _samples"]]:
        """Yields the samples of each window of a recording, which comes in blocks of any sizes."""
        held, is_first = np.zeros(0, np.float32), True
        for block in blocks:
            held = np.concatenate([held, block])
            while len(held) >= self.samples:
                yield held[: self.samples]
                held, is_first = held[self.samples - self.context_samples :], False
        if is_first or len(held) > self.context_samples:
            yield held

    def mels(self, blocks: Iterable[Float[ndarray, " _samples"]]) -> Iterator[WindowMel]:
        """Yields the mel frames of each window; none for an end too short for a frame."""
        for wav in self.cut(blocks):
            filled = np.concatenate([wav, self.silence(len(wav))])
            if len(filled) < fewest_samples(self.mel):
                yield WindowMel(np.zeros((0, self.mel.num_mels), np.float32), 0)
            else:
                yield WindowMel(wav_to_mel(filled, self.mel), self.heard(len(wav)))

    def join(self, codes: Iterable[Int[ndarray, " _frames"]]) -> Iterator[Int[ndarray, " _frames"]]:
        """Yields the codes of each window of a recording, without those of its context."""
        for number, window in enumerate(codes):
            yield window[self.context_codes if number else 0 :]


def _whole(seconds: float, rate_hz: float, name: str, unit: str) -> int:
    """Returns a time as a whole number of units; UserError with the nearest two if it is none."""
    number = round(seconds * rate_hz)
    if abs(number - seconds * rate_hz) > _CLOSE:
        below = int(seconds * rate_hz)
        raise UserError(
            f"{name}: {seconds:g} s is no whole number of {unit} of {1 / rate_hz:g} s; give "
            f"{below / rate_hz:g} or {(below + 1) / rate_hz:g}"
        )
    return number
