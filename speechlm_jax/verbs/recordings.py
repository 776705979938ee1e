"""Audio files and clip folders -> rows and log-mel frames; what cannot be used is set aside."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax.arrays import Float, ndarray
from speechlm_jax.audio.mel import WHISPER, wav_to_mel
from speechlm_jax.audio.recordings import read_clips
from speechlm_jax.audio.wav import BadAudio, read_wav
from speechlm_jax.evals.text_norm import normalize

MAX_SECONDS = 30.0  # as in Whisper; attention costs the square of it


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A row and its log-mel frames."""

    row: dict[str, Any]
    mel: Float[ndarray, "mel_frames mels"]


def find_recordings(
    places: Sequence[Path],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows {"id", "audio", and what a manifest says} of files and clip folders, and bad rows.

    With several places, the ids of a folder's rows begin with its name. Texts are normalised, as
    vocabularies are.
    """
    rows, bad = [], []
    for place in places:
        if not place.is_dir():
            rows.append({"id": str(place), "audio": str(place)})
            continue
        clips = read_clips(place)
        bad += clips.bad
        for row in clips.rows:
            name = row["id"] if len(places) == 1 else f"{place.name}/{row['id']}"
            audio, text = str(place / row["audio"]), normalize(row["text"])
            rows.append({**row, "id": name, "audio": audio, "text": text})
    return rows, bad


def read_recordings(
    rows: Sequence[dict[str, Any]], bad: list[dict[str, Any]]
) -> Iterator[Recording]:
    """Reads recordings one by one; a row that cannot be used goes to `bad`, with its `reason`."""
    seen: set[str] = set()
    for row in rows:
        try:
            if row["id"] in seen:
                raise BadAudio(f"{row['audio']}: its id '{row['id']}' was given before; rename it")
            mel = wav_to_mel(read_samples(row["audio"]), WHISPER)
        except BadAudio as error:
            bad.append({**row, "reason": str(error)})
            continue
        seen.add(row["id"])
        yield Recording(row, mel)


def read_samples(path: str | Path) -> Float[ndarray, " samples"]:
    """Samples at 16 kHz of a recording in any format and at any rate.

    Raises:
      BadAudio: it is missing, unreadable, empty, cut off, silent, too long or short, or holds NaN.
    """
    wav = read_wav(path, sample_rate=WHISPER.sample_rate, max_seconds=MAX_SECONDS)
    if len(wav) <= WHISPER.n_fft:
        raise BadAudio(f"{path}: is shorter than one mel window; record it again or drop its row")
    return wav
