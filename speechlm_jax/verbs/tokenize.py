"""Recordings -> a codes folder."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.recordings import BAD
from speechlm_jax.audio.wav import BadAudio
from speechlm_jax.errors import UserError
from speechlm_jax.speech_tokenizer.encode_corpus import CODES, KIND
from speechlm_jax.speech_tokenizer.reading import Reader
from speechlm_jax.verbs.opening import open_run
from speechlm_jax.verbs.recordings import Recording, find_recordings, read_recordings

CLIPS_PER_CALL = 64
_log = logging.getLogger("speechlm.tokenize")


def tokenize(audio: Sequence[Path], *, run: str | Path, out: str | Path) -> dict[str, Any]:
    """Turns recordings into codes with a run's speech tokenizer (paper section 2.1).

    Writes `codes.jsonl`, `bad.jsonl` (what was set aside, with its reason) and `stage.json`.

    Args:
      audio: files, or folders with a manifest.jsonl (see `audio.recordings`).
      run: a quickstart run's folder.
      out: the codes folder.

    Raises:
      UserError: none of the recordings can be used, or the run has no tokenizer.
    """
    models, out = open_run(run), Path(out)
    rows, bad = find_recordings(audio)
    codes_rows = list(_encode(rows, bad, models.reader))
    if not codes_rows:
        raise UserError(_none_left(bad))
    for row in bad:
        _log.warning("set aside: %s", row["reason"])
    identity = models.codes_identity
    numbers = [artifacts.sha256_file(row["audio"]) for row in codes_rows]
    counts = {
        "clips": len(codes_rows),
        "bad": len(bad),
        "codes": sum(len(row["codes"]) for row in codes_rows),
    }
    (out / artifacts.MANIFEST).unlink(missing_ok=True)  # of what lay there before
    artifacts.write_jsonl(out / CODES, codes_rows)
    artifacts.write_jsonl(out / BAD, bad)
    artifacts.write_manifest(
        out, KIND, config={}, counts=counts, files=[CODES, BAD], extra=identity,
        inputs={"audio": configs.fingerprint(numbers), "tokenizer": identity["tokenizer"]},
    )  # fmt: skip
    return {
        "codes": str(out / CODES),
        "clips": counts["clips"],
        "num_codes": counts["codes"],
        "seconds": counts["codes"] / identity["frame_rate_hz"],
        "tokenizer": identity["tokenizer"],
        "set_aside": [row["reason"] for row in bad],
    }


def _encode(
    rows: Sequence[dict[str, Any]], bad: list[dict[str, Any]], reader: Reader
) -> Iterator[dict[str, Any]]:
    with tqdm(total=len(rows), desc="tokenize", unit="clip", disable=None) as bar:
        recordings = read_recordings(rows, bad)
        while group := list(islice(recordings, CLIPS_PER_CALL)):
            yield from _encode_group(group, bad, reader)
            bar.update(len(group))


def _encode_group(
    group: Sequence[Recording], bad: list[dict[str, Any]], reader: Reader
) -> Iterator[dict[str, Any]]:
    for recording, codes in zip(
        group, reader.mels_to_codes([recording.mel for recording in group]), strict=True
    ):
        if len(codes):
            yield {**recording.row, "codes": codes.tolist()}
        else:
            error = BadAudio(f"{recording.row['audio']}: is shorter than one code; drop its row")
            bad.append({**recording.row, "reason": str(error)})


def _none_left(bad: Sequence[dict[str, Any]]) -> str:
    if len(bad) == 1:
        return bad[0]["reason"]
    return f"none of {len(bad)} recordings can be used; the first: {bad[0]['reason']}"
