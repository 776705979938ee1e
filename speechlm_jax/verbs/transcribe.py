"""Recordings -> texts, window by window."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax.audio.mel import wav_to_mel
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.bundle.contents import beside
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.convert.tokenizers import token_ids
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.runs import load_speech_tokenizer
from speechlm_jax.speech_tokenizer.decoding import AttentionReader, WritingConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab_files import read_text

WINDOW_SECONDS = 30.0  # of a model that has no longest clip of its own; Whisper's


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a recording and its text; times in seconds."""

    start: float
    end: float
    text: str


class Reader:
    """A trained speech tokenizer, or a Whisper, that reads recordings of any length."""

    def __init__(
        self, run: str | Path, *, beams: int = 1, language: str | None = None, batch_size: int = 4
    ):
        """Loads the model of a run.

        Args:
          run: a bundle with a speech tokenizer, or a Whisper (see `bundle.open.open_bundle`).
          beams: transcripts that the attention decoder follows at a time.
          language: language that a multilingual Whisper writes, e.g. "fr"; None: its prompt's.

        Raises:
          UserError: the run has no such model, or the model no such language.
        """
        bundle = open_bundle(run)
        part = bundle.part("tokenizer")
        if not part.text:
            raise UserError(f"{run}: has no text vocabulary; copy the model's tokenizer.json there")
        weights, self.config = load_speech_tokenizer(
            bundle.path("tokenizer"), fingerprint=part.fingerprint
        )
        self._text = read_text(beside(bundle.folder, part.text))
        given = (self.config, weights.params, weights.variables)
        self._prompt = _prompt(self.config, self._text, language)
        self._attention = self._ctc = None
        if self.config.text is not None and self.config.decoder_layers:
            most = self.config.text.max_ids
            writing = WritingConfig(beams, most)
            self._attention = AttentionReader(*given, writing=writing, batch_size=batch_size)
        elif self.config.has_ctc and self.config.quantizer is not None:
            self._ctc = Transcriber(*given, batch_size=batch_size)
        else:
            raise UserError(f"{run}: makes codes and reads no text: it has no decoder")

    @property
    def window_samples(self) -> int:
        """Samples of a window."""
        most = self.config.encoder.max_mel_frames
        mel = self.config.mel
        seconds = WINDOW_SECONDS if most is None else most / mel.mel_rate_hz
        return round(seconds * mel.sample_rate)

    def transcribe(self, wav: Float[ndarray, " samples"]) -> list[Window]:
        """Returns the text of each window of samples at the rate of the model's mel frames."""
        rate, size = self.config.mel.sample_rate, self.window_samples
        parts = [wav[first : first + size] for first in range(0, len(wav), size)]
        mels = [wav_to_mel(self._filled(part), self.config.mel) for part in parts]
        if self._attention is not None:
            ids = self._attention.mels_to_ids(mels, prompt=self._prompt)
        elif self._ctc is not None:
            ids = self._ctc.codes_to_ids(self._ctc.mels_to_codes(mels))
        starts = [i * size / rate for i in range(len(parts))]
        return [
            Window(start, start + len(part) / rate, self._text.decode(said).strip())
            for start, part, said in zip(starts, parts, ids, strict=True)
        ]

    def _filled(self, part: Float[ndarray, " some"]) -> Float[ndarray, " more"]:
        """Fills a window up: Whisper has never heard a shorter one, and repeats itself there."""
        least = self.window_samples if self._attention else self.config.mel.n_fft + 1
        return np.pad(part, (0, max(0, least - len(part))))


def _prompt(
    config: SpeechTokenizerConfig, text: TextTokenizer, language: str | None
) -> tuple[int, ...] | None:
    """Returns the ids that the decoder reads first; None: the model's own."""
    if language is None:
        return None
    name = f"<|{language}|>"
    if config.text is None or len(config.text.prompt) < 4:
        raise UserError(f"--language {language}: this model writes one language; leave it out")
    ids = token_ids(text.model)
    if name not in ids or len(language) > 3:
        raise UserError(f"--language {language}: this model has none of that name; give e.g. fr")
    start, _, *rest = config.text.prompt
    return (start, ids[name], *rest)


def transcribe(
    audio: Sequence[Path],
    *,
    run: str | Path,
    beams: int = 1,
    language: str | None = None,
) -> dict[Path, list[Window]]:
    """Returns the windows of each recording; see `Reader`.

    Raises:
      UserError: a recording cannot be used, or the run has no model that reads.
    """
    reader = Reader(run, beams=beams, language=language)
    rate = reader.config.mel.sample_rate
    return {path: reader.transcribe(read_wav(path, sample_rate=rate)) for path in audio}


def to_srt(windows: Sequence[Window]) -> str:
    """Returns windows as subtitles in SubRip's format; those without text are left out."""
    said = [window for window in windows if window.text]
    blocks = [
        f"{number}\n{_clock(window.start)} --> {_clock(window.end)}\n{window.text}\n"
        for number, window in enumerate(said, start=1)
    ]
    return "\n".join(blocks)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
