"""Turns texts and voices into a clip folder of eSpeak audio with word times."""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio import espeak
from speechlm_jax.audio.recordings import CLIPS
from speechlm_jax.audio.wav import wav_to_file
from speechlm_jax.jobs.shards import (
    ShardTask,
    join_files,
    read_input,
    run_shards,
    total,
    write_inputs,
)

KIND = "clips"
CLIPS_PER_SHARD = 200  # a crash loses at most this many, which take seconds
REQUESTS = "requests"  # a folder, with a file for each shard


@dataclasses.dataclass(frozen=True)
class CorpusClip:
    """A clip to make: its id (a file name without suffix), text and voice, and further fields."""

    id: str
    text: str
    voice: espeak.Voice
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """Row of the manifest, without `audio` and `words`."""
        voice = dataclasses.asdict(self.voice)
        row = {"id": self.id, "text": self.text, "speaker": self.voice.name, "voice": voice}
        return {**row, **self.extra}


def corpus(
    clips: Sequence[CorpusClip],
    folder: str | Path,
    *,
    sample_rate: int = 16_000,
    workers: int = 2,
    progress: str = "speaking",
) -> artifacts.Manifest:
    """Speaks every clip into a clip folder: 16-bit FLAC files, `manifest.jsonl`, `stage.json`.

    If the call is killed, the same call continues; a finished folder is kept. `words` in a row are
    in seconds.

    Raises:
      UserError: eSpeak NG is not installed, or cannot say a clip.
    """
    folder = Path(folder)
    rows = [clip.row for clip in clips]
    config = {
        "clips": configs.fingerprint(rows),
        "sample_rate": sample_rate,
        "engine": espeak.engine(),
    }
    if artifacts.is_current(folder, KIND, inputs={}, config=config):
        return artifacts.read_manifest(folder)
    # From here on the folder differs from an older manifest.
    (folder / artifacts.MANIFEST).unlink(missing_ok=True)
    write_inputs(folder / REQUESTS, rows, rows_per_shard=CLIPS_PER_SHARD)
    arguments = {"requests": str(folder.resolve() / REQUESTS), "sample_rate": sample_rate}
    made = run_shards(
        ShardTask("speechlm_jax.audio.corpus:write_clips", arguments),
        num_shards=math.ceil(len(rows) / CLIPS_PER_SHARD),
        folder=folder / "audio",
        fingerprint=configs.fingerprint(config),
        workers=workers,
        progress=progress,
    )
    join_files([shard.path / CLIPS for shard in made], folder / CLIPS)
    shutil.rmtree(folder / REQUESTS)
    return artifacts.write_manifest(
        folder,
        KIND,
        inputs={},
        config=config,
        counts={"clips": len(rows), "seconds": round(total(made, "seconds"), 3)},
        files=[CLIPS],
        extra={"audio_sha256": {shard.path.name: shard.sha256 for shard in made}},
    )


def write_clips(shard: int, path: Path, *, requests: str, sample_rate: int) -> dict[str, Any]:
    """Shard task: writes this shard's FLAC files and its part of the manifest into `path`."""
    rows = list(read_input(requests, shard))
    asked = [espeak.Request(row["text"], espeak.Voice(**row["voice"])) for row in rows]
    path.mkdir()
    seconds = 0.0
    for row, clip in zip(
        rows, espeak.synthesize(asked, workers=1, sample_rate=sample_rate), strict=True
    ):
        name = f"{row['id']}.flac"
        (path / name).write_bytes(wav_to_file(clip.wav, sample_rate=sample_rate, suffix=".flac"))
        row["audio"] = f"audio/{shard:05d}/{name}"
        row["words"] = [
            [word.text, round(word.start, 4), round(word.end, 4)] for word in clip.words
        ]
        seconds += len(clip.wav) / sample_rate
    artifacts.write_jsonl(path / CLIPS, rows)
    return {"seconds": seconds}
