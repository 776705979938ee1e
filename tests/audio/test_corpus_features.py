"""Texts become a clip folder, and a clip folder a feature folder, whatever happens in between."""

import json

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.audio import corpus as corpora
from speechlm_jax.audio import features
from speechlm_jax.audio.corpus import CorpusClip, corpus
from speechlm_jax.audio.espeak import make_voices
from speechlm_jax.audio.features import write_features
from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.audio.recordings import Features, read_clips
from speechlm_jax.audio.wav import read_wav, write_wav
from speechlm_jax.errors import UserError


def corpus_clips(count: int) -> list[CorpusClip]:
    voices = make_voices(0).train
    texts = ("anna has a tiger", "what is the city of simon", "soup")
    return [
        CorpusClip(f"c{i:02d}", texts[i % 3], voices[5 * i % 44], {"split": "train"})
        for i in range(count)
    ]


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_corpus_is_a_clip_folder_and_a_function_of_its_clips(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="needs the `espeak` extra")
    monkeypatch.setattr(corpora, "CLIPS_PER_SHARD", 4)  # here; workers have their own
    clips = corpus_clips(10)
    manifest = corpus(clips, tmp_path / "a", workers=0, progress="")
    assert manifest.counts["clips"] == 10 and not artifacts.verify(tmp_path / "a")
    rows = read_clips(tmp_path / "a").rows
    assert [row["id"] for row in rows] == [clip.id for clip in clips]
    assert rows[1]["split"] == "train" and rows[1]["speaker"] == clips[1].voice.name
    assert [word[0] for word in rows[1]["words"]] == clips[1].text.split()
    seconds = sum(len(read_wav(tmp_path / "a" / row["audio"])) for row in rows) / 16_000
    assert abs(seconds - manifest.counts["seconds"]) < 0.01
    # Killed after the second shard: what is left is not the last word.
    for name in ("stage.json", "manifest.jsonl", "audio/00002.json"):
        (tmp_path / "a" / name).unlink()
    whole = files(tmp_path / "a")
    again = corpus(clips, tmp_path / "a", workers=0, progress="")
    assert again == manifest and whole.items() <= files(tmp_path / "a").items()
    monkeypatch.setattr(corpora, "run_shards", None)
    assert corpus(clips, tmp_path / "a") == manifest  # current: nothing runs


def recordings(folder, count=7):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        write_wav(folder / f"{i}.wav", rng.normal(0, 0.1, 3_000 + 500 * i).astype(np.float32))
        rows.append({"id": str(i), "audio": f"{i}.wav", "text": f"text {i}", "speaker": "s"})
    write_wav(folder / "silent.wav", np.zeros(5_000, np.float32))
    (folder / "cut.wav").write_bytes((folder / "1.wav").read_bytes()[:1_000])
    rows.insert(2, {"id": "silent", "audio": "silent.wav", "text": "t", "speaker": "s"})
    rows.insert(4, {"id": "cut", "audio": "cut.wav", "text": "t", "speaker": "s"})
    rows.insert(5, {"id": "gone", "audio": "gone.wav", "text": "t", "speaker": "s"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("workers", [0, 2])
def test_features_hold_the_mel_frames_of_every_good_clip(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(features, "CLIPS_PER_SHARD", 3 if workers == 0 else 250)
    clips = tmp_path / "clips"
    clips.mkdir()
    recordings(clips)
    mel = MelConfig(num_mels=40)
    made = write_features(clips, tmp_path / "f", mel, workers=workers, progress="")
    assert [row["id"] for row in made.rows] == list("0123456") and made.mel_config == mel
    assert made.lengths == [(3_000 + 500 * i) // 160 for i in range(7)]
    for number, row in enumerate(made.rows):
        expected = wav_to_mel(read_wav(clips / row["audio"]), mel)
        np.testing.assert_allclose(made.mel(number), expected, atol=1e-3)
        assert made.mel(number).dtype == np.float32
    bad = {row["id"]: row["reason"] for row in artifacts.read_jsonl(tmp_path / "f/bad.jsonl")}
    assert set(bad) == {"silent", "cut", "gone"} and "truncated" in bad["cut"]
    assert made.manifest.counts["bad"] == 3 and not artifacts.verify(tmp_path / "f")
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == sorted(
        ["mels.npy", "clips.jsonl", "bad.jsonl", "stage.json"]
    )


def test_features_are_made_again_only_when_something_changed(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    recordings(clips)
    first = write_features(clips, tmp_path / "f", workers=0, progress="")
    stamp = (tmp_path / "f/stage.json").stat().st_mtime_ns
    again = write_features(clips, tmp_path / "f", workers=0, progress="")
    assert (tmp_path / "f/stage.json").stat().st_mtime_ns == stamp
    assert again.fingerprint == first.fingerprint == Features(tmp_path / "f").fingerprint
    other = write_features(clips, tmp_path / "f", MelConfig(floor="fixed"), workers=0, progress="")
    assert other.fingerprint != first.fingerprint
    short = write_features(clips, tmp_path / "f", max_seconds=0.25, workers=0, progress="")
    assert len(short) == 3


def test_nothing_usable_is_an_error(tmp_path):
    recordings(tmp_path)
    with pytest.raises(UserError, match="no recording can be used"):
        write_features(tmp_path, tmp_path / "f", max_seconds=0.02, workers=0, progress="")
