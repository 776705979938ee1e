"""Rows of a clip folder are read, or set aside with a reason."""

import json

import numpy as np
import pytest

from speechlm_jax.audio.recordings import Features, read_clips
from speechlm_jax.audio.wav import write_wav
from speechlm_jax.errors import UserError


def clip_folder(folder, rows):
    write_wav(folder / "a.wav", np.sin(np.arange(8_000)).astype(np.float32) * 0.3)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


GOOD = {"audio": "a.wav", "text": "hello", "speaker": "s"}


def test_bad_rows_are_set_aside_with_a_reason(tmp_path):
    rows = [
        {"id": "one", **GOOD, "split": "train"},
        {"id": "two", "audio": "a.wav", "text": "hello"},
        {"id": "three", **GOOD, "audio": "gone.wav"},
        {"id": "one", **GOOD},
        {"id": 5, **GOOD},
        {**GOOD},
        {"id": "six", **GOOD, "text": " "},
    ]
    clips = read_clips(clip_folder(tmp_path, rows))
    assert [row["id"] for row in clips.rows] == ["one", "5", "a.wav"]
    assert clips.rows[0]["split"] == "train"
    reasons = {row["id"]: row["reason"] for row in clips.bad}
    assert "'speaker'" in reasons["two"] and "gone.wav" in reasons["three"]
    assert "earlier row" in reasons["one"] and "'text'" in reasons["six"]
    assert "manifest.jsonl:3:" in reasons["three"]


@pytest.mark.parametrize(
    ("rows", "named"),
    [([{"id": "x"}], "no row can be used"), (["{broken"], "manifest.jsonl:1"), ([], "no row")],
)
def test_a_folder_without_a_usable_row_is_an_error(tmp_path, rows, named):
    with pytest.raises(UserError, match=named):
        read_clips(clip_folder(tmp_path, rows))


def test_a_folder_without_a_manifest_is_an_error(tmp_path):
    with pytest.raises(UserError, match="manifest.jsonl"):
        read_clips(tmp_path)
    with pytest.raises(UserError, match="not a finished stage"):
        Features(tmp_path)


def test_the_fingerprint_follows_the_recordings(tmp_path):
    folder = clip_folder(tmp_path, [GOOD])
    before = read_clips(folder).fingerprint
    assert read_clips(folder).fingerprint == before
    write_wav(folder / "a.wav", np.sin(np.arange(9_000)).astype(np.float32) * 0.3)
    assert read_clips(folder).fingerprint != before
