"""Codes, a codes file, or text -> WAV files, by the speech decoder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.audio.griffin_lim import mel_to_wav
from speechlm_jax.audio.mel import WHISPER
from speechlm_jax.audio.wav import write_wav
from speechlm_jax.errors import UserError
from speechlm_jax.quickstart.models import Models
from speechlm_jax.text_to_token.synthesize import SpeechRequest, SynthesisConfig
from speechlm_jax.verbs.opening import choose_voice, open_run, sayable
from speechlm_jax.verbs.synthesize import requests_to_codes

SUFFIXES = (".wav", ".flac")


def speak(
    what: str, *, run: str | Path, out: str | Path, voice: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Writes audio of codes or text.

    Args:
      what: codes as numbers ("17 301 44"), a codes.jsonl file, or text.
      run: a quickstart run's folder.
      out: an audio file (.wav, .flac), or for a codes file the folder of its clips.
      voice: a training voice; None draws one for text, and lets the decoder choose for codes.
      seed: of voice, codes and audio.

    Raises:
      UserError: codes outside the codebook or of another tokenizer, an unknown voice or word.
    """
    models, out = open_run(run), Path(out)
    if what.endswith(".jsonl"):
        rows = _read_codes(Path(what), models)
        folder = out.with_suffix("") if out.suffix in SUFFIXES else out
        paths = [folder / f"{_file_name(row['id'])}.wav" for row in rows]
        codes = [_to_codes(row["codes"], models, what) for row in rows]
    else:
        if out.suffix not in SUFFIXES:
            raise UserError(f"--out {out}: audio is written as .wav or .flac; add one of them")
        paths = [out]
        if re.fullmatch(r"[\d\s]+", what):
            codes = [_to_codes(what.split(), models, "codes")]
        else:
            voice = choose_voice(models.voices, voice, seed=seed)
            request = SpeechRequest(sayable(models, what), voice, seed)
            temperature = SynthesisConfig().temperature
            codes = requests_to_codes(models, [request], temperature=temperature)
    wavs = codes_to_wavs(models, codes, voice=voice, seed=seed)
    for path, wav in zip(paths, wavs, strict=True):
        write_wav(path, wav)
    seconds = sum(map(len, wavs)) / WHISPER.sample_rate
    return {"audio": [str(path) for path in paths], "seconds": seconds, "voice": voice}


def codes_to_wavs(
    models: Models,
    codes: Sequence[Int[ndarray, " frames"]],
    *,
    voice: str | None = None,
    seed: int = 0,
) -> list[np.ndarray]:
    """Samples at 16 kHz of each clip of codes, in a training voice where one is named."""
    decoder = models.speech_decoder
    number = 0  # the flow's "any voice"
    # The decoder numbers its training voices by name; it has all of them unless one had no codes.
    if voice is not None and decoder.config.num_voices == len(models.voices):
        number = 1 + models.voices.index(choose_voice(models.voices, voice, seed=seed))
    mels = decoder.codes_to_mel(codes, voices=number, seed=seed)
    return [mel_to_wav(mel, WHISPER, seed=seed) for mel in mels]


def _read_codes(path: Path, models: Models) -> list[dict[str, Any]]:
    """Rows with codes; UserError if they are not of the run's tokenizer."""
    rows = list(artifacts.read_jsonl(path))
    if not rows or not all("codes" in row and "id" in row for row in rows):
        raise UserError(f'{path}: holds no codes; give rows with "id" and "codes"')
    wanted = models.codes_identity["tokenizer"]
    if (path.parent / artifacts.MANIFEST).is_file():
        found = artifacts.read_manifest(path.parent).extra.get("tokenizer")
        if found != wanted:
            raise UserError(
                f"{path}: codes have tokenizer {found!r}, the run {models.folders.run} has "
                f"{wanted!r}; give --run the run that made them"
            )
    return rows


def _to_codes(values: Sequence[Any], models: Models, where: str) -> Int[ndarray, " frames"]:
    size = models.codes_identity["codebook_size"]
    try:
        codes = np.array([int(value) for value in values], np.int64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: codes must be whole numbers") from None
    if not len(codes) or not 0 <= codes.min() <= codes.max() < size:
        raise UserError(f"{where}: codes must be numbers from 0 to {size - 1}, at least one")
    return codes.astype(np.int32)


def _file_name(name: str) -> str:
    """An id as a file name."""
    return re.sub(r"[^\w.-]+", "-", str(name)).strip("-.") or "clip"
