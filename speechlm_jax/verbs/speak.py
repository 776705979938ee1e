"""Codes, a codes file, or text -> WAV files, by the speech decoder."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.arrays import Int, ndarray
from speechlm_jax.audio.wav import write_wav
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.codes import read_identity
from speechlm_jax.errors import UserError
from speechlm_jax.text_to_token.synthesize import SpeechRequest, SynthesisConfig
from speechlm_jax.verbs.paths import check_speech, out_folder
from speechlm_jax.verbs.sayable import choose_voice, sayable
from speechlm_jax.verbs.synthesize import requests_to_codes

NAME_LENGTH, DIGEST_LENGTH = 50, 12  # 50 characters of 4 bytes still leave room in 255


def speak(
    what: str, *, run: str | Path, out: str | Path, voice: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Turns codes or text into audio and writes it.

    Args:
      what: codes as numbers ("17 301 44"), a codes.jsonl file, or text.
      run: a bundle (see `bundle.open.open_bundle`).
      out: an audio file (.wav, .flac), or for a codes file the folder of its clips.
      voice: a training voice; None draws one for text, and stands for any voice for codes.
      seed: seed of voice, codes and audio.

    Raises:
      UserError: codes are outside the codebook or of another tokenizer, or a voice or word is
        unknown.
    """
    is_file, out = what.endswith(".jsonl"), Path(out)
    models = open_bundle(run, batch_size=8 if is_file else 1)
    models.part("speech_decoder")
    check_speech(what, out)
    is_text = not is_file and not re.fullmatch(r"[\d\s]+", what)
    if voice is not None and not is_text and models.decoder_voices:
        choose_voice(models.decoder_voices, voice, seed=seed)
    if is_file:
        rows = _read_codes(Path(what), models)
        names = ids_to_file_names([str(row["id"]) for row in rows])
        paths = [out_folder(out) / f"{name}.wav" for name in names]
        codes = [_to_codes(row["codes"], models, f"{what}: row {row['id']!r}") for row in rows]
    elif is_text:
        paths, voice = [out], choose_voice(models.voices, voice, seed=seed)
        request = SpeechRequest(sayable(models, what), voice, seed)
        temperature = SynthesisConfig().temperature
        codes = requests_to_codes(models, [request], temperature=temperature)
    else:
        # A number too long for any codebook becomes -1, an error; int() rejects very long ones.
        numbers = [int(number) if len(number) < 10 else -1 for number in what.split()]
        paths, codes = [out], [_to_codes(numbers, models, "codes")]
    wavs = codes_to_wavs(models, codes, voice=voice, seed=seed)
    for path, wav in zip(paths, wavs, strict=True):
        write_wav(path, wav, sample_rate=models.mel.sample_rate)
    seconds = sum(map(len, wavs)) / models.mel.sample_rate
    return {"audio": [str(path) for path in paths], "seconds": seconds, "voice": voice}


def codes_to_wavs(
    models: Bundle,
    codes: Sequence[Int[ndarray, " frames"]],
    *,
    voice: str | None = None,
    seed: int = 0,
) -> list[np.ndarray]:
    """Returns the samples of each clip of codes, in `voice` if the speech decoder knows it."""
    decoder = models.speech_decoder
    names = () if voice is None else models.decoder_voices
    number = 1 + names.index(voice) if voice in names else 0  # 0: the flow's "any voice"
    return decoder.codes_to_wav(codes, mel=models.mel, voices=number, seed=seed)


def _read_codes(path: Path, models: Bundle) -> list[dict[str, Any]]:
    """Reads rows with codes; raises UserError if they are of another tokenizer than the run's."""
    rows = list(artifacts.read_jsonl(path))
    if not rows or not all("codes" in row and "id" in row for row in rows):
        raise UserError(f'{path}: holds no codes; give rows with "id" and "codes"')
    for number, row in enumerate(rows, 1):
        if type(row["id"]) not in (str, int):
            raise UserError(f"{path}: row {number}: its id is no text and no whole number; name it")
    wanted = models.codes.tokenizer
    if (path.parent / artifacts.MANIFEST).is_file():
        found = read_identity(path.parent).tokenizer
        if found != wanted:
            raise UserError(
                f"{path}: codes have tokenizer {found!r}, the run {models.folder} has "
                f"{wanted!r}; give --run the run that made them"
            )
    return rows


def _to_codes(values: Any, models: Bundle, where: str) -> Int[ndarray, " frames"]:
    size = models.codes.codebook_size
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise UserError(f"{where}: codes must be whole numbers")
    if not values or not 0 <= min(values) <= max(values) < size:
        raise UserError(f"{where}: codes must be numbers from 0 to {size - 1}, at least one")
    return np.array(values, np.int32)


def ids_to_file_names(ids: Sequence[str]) -> list[str]:
    """Returns a file name without suffix for each id; the names differ on any file system.

    An id of at most NAME_LENGTH letters, digits, dots, dashes and underscores is its own name,
    unless another name differs from it only in case. The name of every other id is its readable
    part followed by a digest of the id.

    Raises:
      UserError: an id occurs twice.
    """
    counts = Counter(ids)
    for name, count in counts.items():
        if count > 1:
            raise UserError(f"id '{name}' stands in {count} rows; give them ids of their own")
    plain = [_readable(name) for name in ids]
    marked = [f"{short}-{_digest(name)}" for name, short in zip(ids, plain, strict=True)]
    own = {name for name, short in zip(ids, plain, strict=True) if name == short}
    taken = Counter(name.casefold() for name in [*own, *marked])
    return [
        name if name in own and taken[name.casefold()] == 1 else long
        for name, long in zip(ids, marked, strict=True)
    ]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:DIGEST_LENGTH]


def _readable(name: str) -> str:
    """Returns the readable part of an id, in NFC (some file systems compose names, some do not)."""
    composed = unicodedata.normalize("NFC", name)
    return re.sub(r"[^\w.-]+", "-", composed)[:NAME_LENGTH].strip("-.") or "clip"
