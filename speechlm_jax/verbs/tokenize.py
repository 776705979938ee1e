"""Recordings -> a codes folder."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import BAD, CLIPS
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.codes import CODES, write_codes
from speechlm_jax.errors import UserError
from speechlm_jax.jobs.commit import SHARDS, clear
from speechlm_jax.jobs.shards import iter_shards
from speechlm_jax.verbs.paths import check_out_folder, check_places
from speechlm_jax.verbs.recordings import Found, find_recordings, read_recordings

CLIPS_PER_CALL = 64
_log = logging.getLogger("speechlm.tokenize")


def tokenize(
    audio: Sequence[Path], *, run: str | Path, out: str | Path, audio_anywhere: bool = False
) -> dict[str, Any]:
    """Turns recordings into codes with a run's speech tokenizer (paper section 2.1).

    Writes `codes.jsonl`, `bad.jsonl` (rows set aside, with reasons) and `stage.json`. After an
    interruption, the same command continues.

    Args:
      audio: files and folders (see `verbs.recordings.find_recordings`).
      run: a bundle (see `bundle.open.open_bundle`).
      out: the codes folder.
      audio_anywhere: true to allow recordings outside of their folder.

    Raises:
      UserError: none of the recordings can be used, or the run has no speech tokenizer.
    """
    models, out = open_bundle(run), Path(out)
    models.part("tokenizer")
    check_places(audio)
    check_out_folder(out)
    found, bad = find_recordings(audio, audio_anywhere=audio_anywhere)
    made = list(_encode(found, bad, models, out))
    codes_rows = [row for _, row in made]
    if not codes_rows:
        clear(out)
        raise UserError(_none_left(bad))
    for row in bad:
        _log.warning("set aside: %s", row["reason"])
    without_text = sum("text" not in row for row in codes_rows)
    if without_text:
        _log.warning(
            "%d of %d recordings have no text: speech alone, for tasks.speech; for tasks.asr and "
            "tasks.tts write it to %s beside them (audio, text, speaker) or to clip.txt for "
            "clip.flac, then tokenize again", without_text, len(codes_rows), CLIPS,
        )  # fmt: skip
    identity = models.codes
    numbers = [sha256 for sha256, _ in made]
    counts = {
        "clips": len(codes_rows),
        "bad": len(bad),
        "without_text": without_text,
        "codes": sum(len(row["codes"]) for row in codes_rows),
    }
    (out / artifacts.MANIFEST).unlink(missing_ok=True)  # left from earlier codes
    artifacts.write_jsonl(out / BAD, bad)
    write_codes(
        out, codes_rows, identity, config={}, counts=counts, files=[BAD],
        inputs={"audio": configs.fingerprint(numbers), "tokenizer": identity.tokenizer},
    )  # fmt: skip
    clear(out)
    return {
        "codes": str(out / CODES),
        "clips": counts["clips"],
        "without_text": without_text,
        "num_codes": counts["codes"],
        "seconds": counts["codes"] / identity.frame_rate_hz,
        "tokenizer": identity.tokenizer,
        "set_aside": [row["reason"] for row in bad],
    }


def _encode(
    found: Sequence[Found], bad: list[dict[str, Any]], models: Bundle, out: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each file's SHA-256 and row with codes; adds the rows set aside to `bad`."""
    if not found:  # so that the error comes before the model is loaded
        return
    groups = [found[i : i + CLIPS_PER_CALL] for i in range(0, len(found), CLIPS_PER_CALL)]
    files = [[str(one.path), *_stamp(one.path), one.row] for one in found]
    seen: set[str] = set()
    shards = iter_shards(
        lambda group, path: _encode_group(group, seen, models, path),
        groups,
        folder=out / SHARDS,
        fingerprint=configs.fingerprint([models.codes.to_json(), CLIPS_PER_CALL, files]),
    )
    with tqdm(total=len(found), desc="tokenize", unit="clip", disable=None) as bar:
        for group, shard in zip(groups, shards, strict=True):
            for made in artifacts.read_jsonl(shard.path):
                if "sha256" in made:
                    yield made["sha256"], made["row"]
                else:
                    bad.append(made["row"])
            seen.update((shard.result or {})["seen"])
            bar.update(len(group))


def _encode_group(
    group: Sequence[Found], seen: set[str], models: Bundle, path: Path
) -> dict[str, Any]:
    """Shard task: writes rows with their codes, and the rows set aside with their reasons.

    Returns the ids that were read, as "seen".
    """
    bad: list[dict[str, Any]] = []
    recordings = list(read_recordings(group, bad, mel=models.mel, seen=seen))
    codes_of = models.reader.mels_to_codes([recording.mel for recording in recordings])
    made: list[dict[str, Any]] = [{"row": row} for row in bad]
    for recording, codes in zip(recordings, codes_of, strict=True):
        if len(codes):
            sha256 = artifacts.sha256_file(recording.path)
            made.append({"sha256": sha256, "row": {**recording.row, "codes": codes.tolist()}})
        else:
            reason = f"{recording.path}: is shorter than one code; drop its row"
            made.append({"row": {**recording.row, "reason": reason}})
    artifacts.write_jsonl(path, made)
    return {"seen": [recording.row["id"] for recording in recordings]}


def _stamp(path: Path) -> tuple[int, int]:
    """Returns a file's size in bytes and change time in ns; zeros if it no longer exists."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _none_left(bad: Sequence[dict[str, Any]]) -> str:
    if len(bad) == 1:
        return bad[0]["reason"]
    return f"none of {len(bad)} recordings can be used; the first: {bad[0]['reason']}"
