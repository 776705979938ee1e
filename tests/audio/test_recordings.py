"""Rows of a clip folder are read, or set aside with a reason."""

import json
from pathlib import Path

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.audio.recordings import Features, audio_path, read_clips
from speechlm_jax.audio.wav import BadAudio, write_wav
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


@pytest.fixture
def outside(tmp_path):
    """A clip folder, and a recording that is not in it: by an absolute path, `..` and a link."""
    folder = clip_folder(tmp_path / "clips", [GOOD])
    write_wav(tmp_path / "out/b.wav", np.sin(np.arange(8_000)).astype(np.float32) * 0.3)
    (folder / "link.wav").symlink_to(tmp_path / "out/b.wav")
    (folder / "linked").symlink_to(tmp_path / "out")
    ways = [str(tmp_path / "out/b.wav"), "../out/b.wav", "link.wav", "linked/b.wav"]
    return folder, ways


def test_audio_keeps_to_its_folder_unless_that_is_allowed(outside):
    folder, ways = outside
    clip_folder(folder, [GOOD, *({**GOOD, "audio": way} for way in ways)])
    clips = read_clips(folder)
    assert [row["audio"] for row in clips.rows] == ["a.wav"] and len(clips.bad) == len(ways)
    assert all("outside" in row["reason"] for row in clips.bad)
    assert all("--audio-anywhere" in row["reason"] for row in clips.bad)
    allowed = read_clips(folder, audio_anywhere=True)
    assert not any(Path(row["audio"]).is_absolute() for row in allowed.rows)
    assert not any(Path(row["id"]).is_absolute() for row in allowed.rows)
    assert {row["audio"] for row in allowed.rows} >= {"a.wav", "../out/b.wav", "link.wav"}
    for way in ways:
        assert audio_path(folder, way, anywhere=True).samefile(folder / way)
        with pytest.raises(BadAudio, match="outside"):
            audio_path(folder, way)


def test_what_lies_inside_is_relative_however_it_is_written(outside):
    folder, _ = outside
    (folder / "same.wav").symlink_to("a.wav")
    away = folder.parent / "a link to it"
    away.symlink_to(folder)
    for home in (folder, away):
        for audio in ("a.wav", str(folder / "a.wav"), "linked/../clips/a.wav", "same.wav"):
            path = audio_path(home, audio)
            assert path.parent == home and path.samefile(folder / "a.wav")


@pytest.mark.parametrize("audio", ["a\0b.wav", "x" * 300, "y/" * 3_000, ".", "loop.wav"])
def test_a_strange_path_is_set_aside(tmp_path, audio):
    folder = clip_folder(tmp_path, [GOOD, {**GOOD, "audio": audio}])
    (folder / "loop.wav").symlink_to("loop.wav")
    (bad,) = read_clips(folder).bad
    assert "manifest.jsonl:2:" in bad["reason"]


def test_half_a_character_is_named_with_its_line(tmp_path):
    row = json.dumps(GOOD)[:-1] + ', "note": "\\ud800"}'
    with pytest.raises(UserError, match="manifest.jsonl:2: holds half a character"):
        read_clips(clip_folder(tmp_path, [GOOD, row]))


def test_recordings_may_lie_apart_from_their_manifest(tmp_path):
    home = clip_folder(tmp_path / "clips", [GOOD])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.jsonl").write_text(json.dumps(GOOD))
    clips = read_clips(tmp_path / "run", recordings=home)
    assert [row["audio"] for row in clips.rows] == ["a.wav"]
    before = clips.fingerprint
    write_wav(home / "a.wav", np.sin(np.arange(9_000)).astype(np.float32) * 0.3)
    assert read_clips(tmp_path / "run", recordings=home).fingerprint != before


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


@pytest.mark.parametrize(
    ("row", "mels", "told"),
    [
        ({"start": 0, "stop": 3}, np.zeros((3, 80), np.float16), None),
        ({"start": 0, "stop": 4}, np.zeros((3, 80), np.float16), "row 1: frames 0 to 4 are not"),
        ({"start": 2, "stop": 1}, np.zeros((3, 80), np.float16), "frames 2 to 1"),
        ({"start": -1, "stop": 2}, np.zeros((3, 80), np.float16), "frames -1 to 2"),
        ({"start": "0", "stop": 3}, np.zeros((3, 80), np.float16), "frames 0 to 3 are not"),
        ({"stop": 3}, np.zeros((3, 80), np.float16), "frames None to 3"),
        ({"start": 0, "stop": 3}, np.zeros(3, np.float16), "no mel frames of 80 bins"),
        ({"start": 0, "stop": 3}, np.zeros((3, 8), np.float16), "no mel frames of 80 bins"),
        ({"start": 0, "stop": 3}, np.array([{}]), "cannot be read"),
        ({"start": 0, "stop": 3}, None, "cannot be read"),
    ],
)
def test_features_hold_what_their_rows_say(tmp_path, row, mels, told):
    if mels is not None:
        np.save(tmp_path / "mels.npy", mels)
    artifacts.write_jsonl(tmp_path / "clips.jsonl", [row])
    config = {"mel": configs.to_json(MelConfig())}
    artifacts.write_manifest(tmp_path, "features", inputs={}, config=config)
    if told is None:
        assert Features(tmp_path).mel(0).shape == (3, 80)
        return
    with pytest.raises(UserError, match=told):
        Features(tmp_path)


def test_the_fingerprint_follows_the_recordings(tmp_path):
    folder = clip_folder(tmp_path, [GOOD])
    before = read_clips(folder).fingerprint
    assert read_clips(folder).fingerprint == before
    write_wav(folder / "a.wav", np.sin(np.arange(9_000)).astype(np.float32) * 0.3)
    assert read_clips(folder).fingerprint != before
