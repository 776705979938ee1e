"""Clip folders -> rows, and feature folders -> mel frames.

A clip folder holds `manifest.jsonl`, an object a line: `audio` (a path inside the folder), `text`,
`speaker`, and optionally `id`, `split`, `words` or anything else. A feature folder is made from it
by `speechlm_jax.bulk.features.write_features`.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.errors import UserError

CLIPS = "manifest.jsonl"
MELS, ROWS, BAD = "mels.npy", "clips.jsonl", "bad.jsonl"
FEATURES_KIND = "features"


@dataclasses.dataclass(frozen=True)
class Clips:
    """The rows of a clip folder, and those set aside (each with a `reason`)."""

    folder: Path
    rows: list[dict[str, Any]]
    bad: list[dict[str, Any]]

    @property
    def fingerprint(self) -> str:
        """Changes when the manifest or a recording (its size or its time of change) does."""
        manifest = artifacts.sha256_file(self.folder / CLIPS)
        if (self.folder / artifacts.MANIFEST).is_file():
            return configs.fingerprint([manifest, artifacts.read_manifest(self.folder).fingerprint])
        digest = hashlib.sha256(manifest.encode())
        for row in self.rows:
            stat = (self.folder / row["audio"]).stat()
            digest.update(f"{row['id']} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def read_clips(folder: str | Path) -> Clips:
    """Reads a clip folder's manifest; the recordings themselves are not opened.

    A row without its file, with a missing or wrong field, or with an id that was used before is set
    aside. `id` defaults to the audio path.

    Raises:
      UserError: the folder has no manifest, a line is not JSON, or no row is left.
    """
    folder = Path(folder)
    manifest = folder / CLIPS
    if not manifest.is_file():
        raise UserError(f"{folder}: has no {CLIPS}; write one row a clip: audio, text, speaker")
    rows, bad, seen = [], [], set()
    for number, row in enumerate(artifacts.read_jsonl(manifest), 1):
        reason = _fault(folder, row)
        row = {"id": row.get("audio", f"line {number}"), **row}
        row["id"] = str(row["id"])
        if reason is None and row["id"] in seen:
            reason = f"id '{row['id']}' stands in an earlier row; give it another"
        if reason is None:
            seen.add(row["id"])
            rows.append(row)
        else:
            bad.append({**row, "reason": f"{manifest}:{number}: {reason}"})
    if not rows:
        first = f"; the first: {bad[0]['reason']}" if bad else ""
        raise UserError(f"{manifest}: no row can be used ({len(bad)} set aside){first}")
    return Clips(folder, rows, bad)


def _fault(folder: Path, row: dict[str, Any]) -> str | None:
    for field in ("audio", "text", "speaker"):
        if field not in row:
            return f"has no field '{field}'"
        if not isinstance(row[field], str) or not row[field].strip():
            return f"field '{field}' is not a text"
    if not (folder / row["audio"]).is_file():
        return f"audio '{row['audio']}' is not there; correct the path, or drop the row"
    return None


class Features:
    """A feature folder, read without loading it: rows and the mel frames of each."""

    def __init__(self, folder: str | Path):
        """UserError if the folder is not a finished feature folder."""
        self.folder = Path(folder)
        self.manifest = artifacts.read_manifest(folder)
        if self.manifest.kind != FEATURES_KIND:
            raise UserError(f"{folder}: holds {self.manifest.kind}, not {FEATURES_KIND}")
        self.rows = list(artifacts.read_jsonl(self.folder / ROWS))
        self._mels = np.load(self.folder / MELS, mmap_mode="r", allow_pickle=False)

    @property
    def mel_config(self) -> MelConfig:
        """How the mel frames were made."""
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
        """The mel frames of clip `number`, float32."""
        row = self.rows[number]
        return np.asarray(self._mels[row["start"] : row["stop"]], np.float32)
