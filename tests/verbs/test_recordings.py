"""Files and folders become rows with what is known of them, whatever way they are given."""

import os
from pathlib import Path

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.audio.wav import write_wav
from speechlm_jax.errors import UserError
from speechlm_jax.verbs.recordings import find_recordings


def clip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, np.sin(np.arange(8_000)).astype(np.float32) * 0.3)
    return path


def manifest(folder: Path, *names: str, **fields) -> None:
    row = {"text": "The CAT!", "speaker": "Ann"} | fields
    artifacts.write_jsonl(folder / "manifest.jsonl", [{"audio": name, **row} for name in names])


def rows_of(places, **options):
    found = list(find_recordings(places, **options))
    good = [one for one in found if not one.reason]
    assert all(isinstance(one.source, Path) and one.source.is_file() for one in good)
    bad = [{**one.row, "reason": one.reason} for one in found if one.reason]
    return [one.row for one in good], bad


def test_a_folder_and_its_files_one_by_one_are_the_same_rows(tmp_path):
    files = [clip(tmp_path / name) for name in ("a.wav", "b.flac")]
    manifest(tmp_path, "a.wav", "./b.flac")
    whole, bad = rows_of([tmp_path])
    assert not bad and [row["id"] for row in whole] == ["a.wav", "b.flac"]
    assert all((row["text"], row["speaker"]) == ("The CAT!", "Ann") for row in whole)
    assert rows_of(files) == (whole, [])
    assert rows_of(files[1:]) == (whole[1:], [])


def test_without_a_manifest_a_text_beside_the_file_is_what_it_says(tmp_path):
    for name in ("a.wav", "sub/b.FLAC", "c.wav", ".hidden.wav"):
        if name == "sub/b.FLAC":
            clip(tmp_path / "sub/b.flac").rename(tmp_path / name)
        else:
            clip(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeffThe Cat\n", encoding="utf-8")
    (tmp_path / "c.txt").write_bytes("caf\u00e9".encode("latin-1"))
    rows, bad = rows_of([tmp_path])
    assert rows == [
        {"id": "a.wav", "audio": "a.wav", "text": "The Cat"},
        {"id": "sub/b.FLAC", "audio": "sub/b.FLAC"},
    ]
    assert [row["id"] for row in bad] == ["c.wav"] and "c.txt: is not UTF-8" in bad[0]["reason"]


# An accent that stands alone and the Hangul filler are left by normalising, and say nothing.
@pytest.mark.parametrize("text", ["...!?", "\u0301", "\u3164"])
def test_a_text_without_words_is_set_aside(text, tmp_path):
    for name in ("a.wav", "b.wav"):
        clip(tmp_path / name)
    manifest(tmp_path, "a.wav", text=text)
    rows, bad = rows_of([tmp_path])
    assert rows == [] and "a.wav: its text has no words" in bad[0]["reason"]
    (tmp_path / "manifest.jsonl").unlink()
    (tmp_path / "b.txt").write_text(" - \n")
    rows, bad = rows_of([tmp_path])
    assert rows == [{"id": "a.wav", "audio": "a.wav"}]
    assert "b.wav: its text has no words" in bad[0]["reason"]


def test_several_places_have_ids_of_their_own_and_no_path_is_absolute(tmp_path):
    places = [tmp_path / "one/clips", tmp_path / "two/clips", clip(tmp_path / "c.wav")]
    for place in places[:2]:
        clip(place / "a.wav")
    manifest(places[0], "a.wav", id="x")
    rows, _ = rows_of(places)
    assert [row["id"] for row in rows] == ["one/clips/x", "two/clips/a.wav", "c.wav"]
    assert [row["audio"] for row in rows] == ["one/clips/a.wav", "two/clips/a.wav", "c.wav"]


def test_a_row_that_is_set_aside_in_the_manifest_is_so_for_its_file(tmp_path):
    files = [clip(tmp_path / name) for name in ("a.wav", "b.wav")]
    rows = [{"audio": "a.wav", "text": "a", "speaker": "s"}, {"audio": "b.wav", "text": "b"}]
    artifacts.write_jsonl(tmp_path / "manifest.jsonl", rows)
    rows, bad = rows_of(files)
    assert [row["id"] for row in rows] == ["a.wav"]
    assert "manifest.jsonl:2: has no field 'speaker'" in bad[0]["reason"]


def test_a_field_that_is_called_reason_is_none(tmp_path):
    clip(tmp_path / "a.wav")
    manifest(tmp_path, "a.wav", reason="read aloud")
    for places in ([tmp_path], [tmp_path / "a.wav"]):
        rows, bad = rows_of(places)
        assert rows[0]["reason"] == "read aloud" and not bad


def test_links_out_of_a_folder_without_a_manifest_need_a_word(tmp_path):
    folder = tmp_path / "clips"
    clip(folder / "a.wav")
    os.symlink(clip(tmp_path / "out.wav"), folder / "link.wav")
    rows, bad = rows_of([folder])
    assert [row["id"] for row in rows] == ["a.wav"] and "--audio-anywhere" in bad[0]["reason"]
    rows, bad = rows_of([folder], audio_anywhere=True)
    assert [row["id"] for row in rows] == ["a.wav", "link.wav"] and not bad


def test_a_text_that_is_a_link_out_of_its_folder_is_not_read_without_a_word(tmp_path):
    folder = tmp_path / "clips"
    clip(folder / "a.wav")
    (tmp_path / "secret.txt").write_text("my own words")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    for places in ([folder], [folder / "a.wav"]):
        rows, bad = rows_of(places)
        assert not rows and "a link out of its folder" in bad[0]["reason"]
        rows, bad = rows_of(places, audio_anywhere=True)
        assert rows[0]["text"] == "my own words" and not bad


def test_a_name_that_is_not_utf8_is_set_aside(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        clip(tmp_path / "a.wav").rename(tmp_path / name)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    rows, bad = rows_of([tmp_path])
    assert rows == [] and "its name is not UTF-8" in bad[0]["reason"]
    artifacts.write_jsonl(tmp_path / "bad.jsonl", bad)


def test_places_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="no manifest.jsonl and no recordings"):
        rows_of([tmp_path])
