"""Reads clip folders as rows, and feature folders as mel frames.

A clip folder holds `manifest.jsonl`, one object per line: `audio` (a path inside the folder),
`text`, `speaker`, and optionally `id`, `split`, `words` or anything else.
`speechlm_jax.audio.features.write_features` makes a feature folder from it.

Every `audio` becomes a path by `audio_path`, which keeps it inside its folder.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax import artifacts, bucket
from speechlm_jax import config as configs
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.audio.wav import BadAudio, check_file
from speechlm_jax.errors import UserError

CLIPS = "manifest.jsonl"
MELS, ROWS, BAD = "mels.npy", "clips.jsonl", "bad.jsonl"
FEATURES_KIND = "features"
NO_WORDS = "its text has no words; write what is said in it, or drop its row"


@dataclasses.dataclass(frozen=True)
class Clips:
    """The rows of a clip folder, and the rows set aside (each with a `reason`).

    Attributes:
      folder: folder of the manifest.
      recordings: folder that the rows' `audio` is relative to.
    """

    folder: Path
    rows: list[dict[str, Any]]
    bad: list[dict[str, Any]]
    recordings: Path

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the manifest and the recordings (their sizes and times of change)."""
        manifest = artifacts.sha256_file(self.folder / CLIPS)
        if (self.folder / artifacts.MANIFEST).is_file():
            return configs.fingerprint([manifest, artifacts.read_manifest(self.folder).fingerprint])
        digest = hashlib.sha256(manifest.encode())
        for row in self.rows:
            stat = (self.recordings / row["audio"]).stat()
            digest.update(f"{row['id']} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def read_clips(
    folder: str | Path, *, recordings: str | Path | None = None, audio_anywhere: bool = False
) -> Clips:
    """Reads a clip folder's manifest; the recordings themselves are not opened.

    A row is set aside if its file is missing, a field is missing or wrong, or an earlier row has
    its id. `id` defaults to the audio path. The rows' `audio` becomes relative, whatever was
    written.

    Args:
      folder: folder of the manifest.
      recordings: folder of the audio, if it is another one.
      audio_anywhere: true to allow `audio` outside of its folder.

    Raises:
      UserError: the folder has no manifest, a line is not JSON, or no row is left.
    """
    folder = Path(folder)
    home = folder if recordings is None else Path(recordings)
    if not (folder / CLIPS).is_file():
        raise UserError(f"{folder}: has no {CLIPS}; write one row a clip: audio, text, speaker")
    rows, bad = [], []
    for row, error in iter_clips(folder / CLIPS, recordings=home, audio_anywhere=audio_anywhere):
        if error is None:
            rows.append(row)
        elif isinstance(error, BadAudio):
            bad.append({**row, "reason": str(error)})
        else:
            raise error
    if not rows:
        first = f"; the first: {bad[0]['reason']}" if bad else ""
        raise UserError(f"{folder / CLIPS}: no row can be used ({len(bad)} set aside){first}")
    return Clips(folder, rows, bad, home)


def iter_clips(
    manifest: str | Path, *, recordings: str | Path, audio_anywhere: bool = False
) -> Iterator[tuple[dict[str, Any], UserError | None]]:
    """Yields each row of a manifest, and the error that sets it aside: BadAudio.

    Of a line that is no row at all, the error is another UserError, and the row holds an id alone.
    Arguments as those of `read_clips`, or addresses in a bucket, where no file is looked for.
    """
    seen = SeenIds()
    for number, given in artifacts.numbered_jsonl(manifest):
        where, row = f"{manifest}:{number}", {"id": f"line {number}"}
        try:
            if isinstance(given, UserError):
                raise given
            _check_unicode(where, given)
            name = given.get("id", given.get("audio"))
            row = {**given, "id": row["id"] if name is None else str(name)}
            row = _checked(row, recordings, audio_anywhere=audio_anywhere)
            if "id" not in given:
                row["id"] = row["audio"]
            if not seen.add(row["id"]):
                raise BadAudio(f"id '{row['id']}' stands in an earlier row; give it another")
        except BadAudio as error:
            yield row, BadAudio(f"{where}: {error}")
        except UserError as error:
            yield row, error
        else:
            yield row, None


class SeenIds:
    """A set of ids, by 8 bytes of a hash of each: millions fit into memory."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def add(self, name: str) -> bool:
        """Adds an id; returns whether it is new."""
        digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
        known, before = int.from_bytes(digest, "little"), len(self._hashes)
        self._hashes.add(known)
        return len(self._hashes) > before


def audio_path(folder: str | Path, audio: str, *, anywhere: bool = False) -> Path:
    """Returns the file that a row's `audio` names: `folder` and a path relative to it.

    Raises:
      BadAudio: the file is not there, or lies outside of the folder (by an absolute path, `..` or a
        link) without permission to lie `anywhere`.
    """
    folder = Path(folder)
    try:
        home, real = os.path.realpath(folder), os.path.realpath(folder / audio)
        if not anywhere and not Path(real).is_relative_to(home):
            raise BadAudio(
                f"audio '{audio}' lies outside of {folder}; move it there, or allow that with "
                "--audio-anywhere"
            )
        check_file(folder / audio)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise BadAudio(f"audio '{audio}' cannot be opened; correct the path") from None
    is_plain = not os.path.isabs(audio) and os.pardir not in Path(audio).parts
    return folder / (audio if is_plain else os.path.relpath(real, home))


def _check_unicode(where: str, row: dict[str, Any]) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: holds half a character (a lone surrogate); write the row again"
        ) from None


def _checked(row: dict[str, Any], folder: str | Path, *, audio_anywhere: bool) -> dict[str, Any]:
    """Returns the row with a relative `audio`; BadAudio if one of its fields cannot be used."""
    for field in ("audio", "text", "speaker"):
        if field not in row:
            raise BadAudio(f"has no field '{field}'")
        if not isinstance(row[field], str) or not row[field].strip():
            raise BadAudio(f"field '{field}' is not a text")
    if bucket.is_address(folder):
        return {**row, "audio": _audio_in_bucket(row["audio"])}
    audio = audio_path(folder, row["audio"], anywhere=audio_anywhere)
    return {**row, "audio": str(audio.relative_to(folder))}


def _audio_in_bucket(audio: str) -> str:
    """Returns the path of a row below an address; BadAudio if it leads elsewhere."""
    path = os.path.normpath(audio)
    if bucket.is_address(audio) or os.path.isabs(path) or path.split("/")[0] == os.pardir:
        raise BadAudio(f"audio '{audio}' lies outside of the manifest's folder; move it there")
    return path


class Features:
    """A feature folder: its rows and the mel frames of each, read on demand."""

    def __init__(self, folder: str | Path):
        """Raises UserError if the folder is not finished, or lacks frames that its rows name."""
        self.folder = Path(folder)
        self.manifest = artifacts.read_manifest(folder)
        if self.manifest.kind != FEATURES_KIND:
            raise UserError(f"{folder}: holds {self.manifest.kind}, not {FEATURES_KIND}")
        self.rows = list(artifacts.read_jsonl(self.folder / ROWS))
        self._mels = self._load()
        for number, row in enumerate(self.rows, 1):
            start, stop = row.get("start"), row.get("stop")
            whole = type(start) is int and type(stop) is int
            if not whole or not 0 <= start <= stop <= len(self._mels):
                raise UserError(
                    f"{self.folder / ROWS}: row {number}: frames {start} to {stop} are not in "
                    f"{MELS} ({len(self._mels)} frames); make the folder again"
                )

    def _load(self) -> np.ndarray:
        path, bins = self.folder / MELS, self.mel_config.num_mels
        try:
            mels = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error}); make the folder again") from None
        if mels.ndim != 2 or mels.shape[1] != bins or mels.dtype.kind != "f":
            raise UserError(f"{path}: holds no mel frames of {bins} bins; make the folder again")
        return mels

    @property
    def mel_config(self) -> MelConfig:
        """Settings with which the mel frames were made."""
        return configs.from_json(MelConfig, self.manifest.config["mel"])

    @property
    def fingerprint(self) -> str:
        """Identity of these features, for the manifests of what is made from them."""
        return self.manifest.fingerprint

    @property
    def lengths(self) -> list[int]:
        """Mel frames of each clip."""
        return [row["stop"] - row["start"] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def mel(self, number: int) -> Float[ndarray, "mel_frames mels"]:
        """Returns the mel frames of clip `number`, float32."""
        row = self.rows[number]
        return np.asarray(self._mels[row["start"] : row["stop"]], np.float32)
