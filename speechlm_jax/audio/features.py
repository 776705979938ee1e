"""Turns a clip folder into a feature folder: the log-mel frames of every clip in one file."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.mel import WHISPER, MelConfig, wav_to_mel
from speechlm_jax.audio.recordings import BAD, FEATURES_KIND, MELS, ROWS, Features, read_clips
from speechlm_jax.audio.wav import BadAudio, read_wav
from speechlm_jax.errors import UserError
from speechlm_jax.jobs.commit import Shard
from speechlm_jax.jobs.shards import ShardTask, read_input, run_shards, write_inputs

CLIPS_PER_SHARD = 250
PARTS, REQUESTS = "parts", "requests"


def write_features(
    clips_folder: str | Path,
    folder: str | Path,
    mel: MelConfig = WHISPER,
    *,
    recordings: str | Path | None = None,
    audio_anywhere: bool = False,
    max_seconds: float = 30.0,
    workers: int = 2,
    progress: str = "log-mel",
) -> Features:
    """Reads every recording of a clip folder at `mel.sample_rate` and stores its mel frames.

    Writes `mels.npy` (float16, all frames one after the other), `clips.jsonl` (the rows, with
    `start` and `stop` in mel frames), `bad.jsonl` (rows set aside, with `reason`), `stage.json`.
    If the call is killed, the same call continues; a finished, unchanged folder is only opened.

    `recordings` and `audio_anywhere` are those of `read_clips`.

    Raises:
      UserError: the folder has no manifest, or none of its recordings can be used.
    """
    folder = Path(folder)
    clips = read_clips(clips_folder, recordings=recordings, audio_anywhere=audio_anywhere)
    config = {"mel": mel, "max_seconds": float(max_seconds)}
    inputs = {"clips": clips.fingerprint}
    if artifacts.is_current(folder, FEATURES_KIND, inputs=inputs, config=config):
        _clear(folder)
        return Features(folder)
    # From here on the folder differs from an older manifest.
    (folder / artifacts.MANIFEST).unlink(missing_ok=True)
    write_inputs(folder / REQUESTS, clips.rows, rows_per_shard=CLIPS_PER_SHARD)
    arguments = {
        "requests": str((folder / REQUESTS).resolve()),
        "recordings": str(clips.recordings.resolve()),
        **configs.to_json(config),
    }
    parts = run_shards(
        ShardTask("speechlm_jax.audio.features:write_part", arguments),
        num_shards=math.ceil(len(clips.rows) / CLIPS_PER_SHARD),
        folder=folder / PARTS,
        fingerprint=configs.fingerprint([inputs, config]),
        workers=workers,
        progress=progress,
    )
    counts = _join(folder, parts, clips.bad, mel)
    artifacts.write_manifest(
        folder, FEATURES_KIND, inputs=inputs, config=config, counts=counts, files=[MELS, ROWS, BAD]
    )
    _clear(folder)
    return Features(folder)


def write_part(
    shard: int,
    path: Path,
    *,
    requests: str,
    recordings: str,
    mel: dict[str, Any],
    max_seconds: float,
) -> dict[str, Any]:
    """Shard task: writes mel frames and rows of this shard's clips; sets bad recordings aside."""
    config = configs.from_json(MelConfig, mel)
    rows, bad, mels = [], [], [np.zeros((0, config.num_mels), np.float16)]
    for row in read_input(requests, shard):
        audio = Path(recordings) / row["audio"]
        try:
            wav = read_wav(audio, sample_rate=config.sample_rate, max_seconds=max_seconds)
            if len(wav) <= config.n_fft:
                raise BadAudio(f"{audio}: is shorter than one mel window; drop its row")
        except BadAudio as error:
            bad.append({**row, "reason": str(error).removeprefix(f"{recordings}/")})
            continue
        mels.append(wav_to_mel(wav, config).astype(np.float16))
        rows.append({**row, "mel_frames": len(mels[-1])})
    path.mkdir()
    np.save(path / MELS, np.concatenate(mels), allow_pickle=False)
    artifacts.write_jsonl(path / ROWS, rows)
    artifacts.write_jsonl(path / BAD, bad)
    return {"mel_frames": sum(map(len, mels))}


def _clear(folder: Path) -> None:
    """Removes files that only an unfinished folder needs."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    shutil.rmtree(folder / REQUESTS, ignore_errors=True)


def _join(
    folder: Path, parts: Sequence[Shard], bad: list[dict[str, Any]], mel: MelConfig
) -> dict[str, Any]:
    """Writes the folder's files from the parts; returns the manifest's counts."""
    rows, bad, start = [], list(bad), 0
    for part in parts:
        bad += artifacts.read_jsonl(part.path / BAD)
        for row in artifacts.read_jsonl(part.path / ROWS):
            stop = start + row.pop("mel_frames")
            rows.append({**row, "start": start, "stop": stop})
            start = stop
    if not rows:
        raise UserError(
            f"{folder}: no recording can be used, {len(bad)} set aside; the first: "
            f"{bad[0]['reason']}"
        )
    with artifacts.atomic_file(folder / MELS) as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (start, mel.num_mels)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.load(part.path / MELS, allow_pickle=False).tobytes())
    artifacts.write_jsonl(folder / ROWS, rows)
    artifacts.write_jsonl(folder / BAD, bad)
    seconds = start / mel.mel_rate_hz
    return {"clips": len(rows), "bad": len(bad), "mel_frames": start, "seconds": round(seconds, 2)}
