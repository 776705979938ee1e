"""A user's own recordings and text: splits, documents, one vocabulary, and the whole chain."""

import dataclasses
import gzip
import json
from collections import Counter

import numpy as np
import pytest
import soundfile
from own_clips import SENTENCES, SPEAKERS, make_own_folder

from speechlm_jax import artifacts
from speechlm_jax.audio.recordings import Features
from speechlm_jax.data.text_norm import normalize
from speechlm_jax.errors import UserError
from speechlm_jax.quickstart import own_data
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.own_data import choose_held_out, make_own, text_to_documents
from speechlm_jax.quickstart.steps import quickstart
from speechlm_jax.report.write import figures_from_json

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    pytest.importorskip("espeakng_loader", reason="needs the `espeak` extra")
    return make_own_folder(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize("seed", range(5))
def test_whole_speakers_are_held_out_where_there_are_enough(seed):
    rng = np.random.default_rng(seed)
    speakers = [f"s{i}" for i in rng.integers(0, 12, 200)]
    chosen = choose_held_out(speakers, seed=seed)
    held_out = {speakers[i] for i in chosen}
    assert chosen == {i for i, speaker in enumerate(speakers) if speaker in held_out}
    largest = max(Counter(speakers).values())
    assert 20 <= len(chosen) < 20 + largest and len(held_out) <= 6
    assert chosen == choose_held_out(speakers, seed=seed)


def test_of_few_speakers_clips_are_held_out():
    chosen = choose_held_out(["a", "b", "c"] * 20, seed=0)
    assert len(chosen) == 6 and chosen != choose_held_out(["a", "b", "c"] * 20, seed=1)
    assert len(choose_held_out(["a"] * 4, seed=0)) == 2


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
def test_documents_are_the_text_as_it_stands_in_order(tmp_path, suffix):
    text = "\n".join(f"Line {i}: caf\u00e9, \u201cNumber\u201d {i * i}!" for i in range(200))
    content = text if "jsonl" not in suffix else "\n".join(
        json.dumps({"book": 1, "text": part}) for part in text.splitlines()
    )  # fmt: skip
    data = b"\xef\xbb\xbf" + content.encode()  # editors on Windows write a mark first
    path = tmp_path / f"text{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    documents = text_to_documents(path, words=100 if "txt" in suffix else 3)
    assert [word for document in documents for word in document.split()] == text.split()
    if "txt" in suffix:
        assert all(document in text for document in documents)
        assert all(abs(len(document.split()) - 100) < 12 for document in documents)


def test_text_that_cannot_be_read_is_named(tmp_path):
    for name, content, expected in (
        ("a.txt", "caf\u00e9".encode("latin-1"), "a.txt: is not UTF-8"),
        ("b.txt.gz", b"no gzip", "b.txt.gz: is not a whole gzip file"),
        ("c.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', 'c.jsonl:2: has no "text"'),
        ("d.jsonl", b"{broken", "d.jsonl:1: is not JSON"),
        ("e.jsonl", b"[" * 100_000, "e.jsonl:1: cannot be read"),
        ("f.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "f.jsonl:1: cannot be read"),
        ("part[1].jsonl", b'{"txt": "b"}', 'part[1].jsonl:1: has no "text"'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            text_to_documents(tmp_path / name, words=100)
        assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_run_wants_both_and_says_what_is_missing(own_folder, tmp_path):
    speech, text = own_folder
    for given, expected in (
        ({"speech": speech}, "give both or neither"),
        ({"speech": tmp_path, "text": text}, "has no manifest.jsonl"),
        ({"speech": speech, "text": tmp_path / "gone.txt"}, "no such text file"),
        ({"speech": speech, "text": tmp_path}, "is a folder; give --text a file"),
        ({"speech": speech, "text": text, "world": "w.json"}, "--world"),
    ):
        with pytest.raises(UserError, match=expected):
            quickstart(tmp_path / "run", size="micro", **given)
    Folders(tmp_path).world.write_text("{}")
    with pytest.raises(UserError, match="holds a run on the world.*another --out"):
        quickstart(tmp_path, size="micro", speech=speech, text=text)
    (tmp_path / "few.txt").write_text("too few words")
    with pytest.raises(UserError, match="few.txt: holds 3 words; give at least 80"):
        quickstart(tmp_path / "run", size="micro", speech=speech, text=tmp_path / "few.txt")


def test_recordings_and_text_become_one_vocabulary(own_folder, tmp_path, caplog):
    speech, text = own_folder
    q = make_own(Folders(tmp_path / "run"), speech, text, size="micro", seed=0)
    own_data.read_own(q)
    rows = Features(q.folders.features).rows
    assert len(rows) == 11 and {row["speaker"] for row in rows} == set(SPEAKERS)
    assert {row["text"] for row in rows} == {normalize(text) for text in SENTENCES}
    assert Counter(row["split"] for row in rows) == {"train": 9, "validation": 2}
    (bad,) = own_data.bad_recordings(q)
    assert "clip 11.mp3" in bad["reason"] and "clip 11.mp3" in caplog.text
    # Cased text and transcripts are the same words, and none needs bytes.
    for line in (*SENTENCES, text.read_text(encoding="utf-8")[:200]):
        said = normalize(line)
        assert q.models.text.decode(q.models.text.encode(said)) == said
        assert len(q.models.text.encode(said)) < 0.8 * len(said)
    assert max(q.features.lengths) <= q.buckets.edges[-1] < max(q.features.lengths) + 32
    for name in ("interleaved", "text"):
        documents = list(artifacts.read_jsonl(q.folders.documents / name / "documents.jsonl"))
        assert {row["split"] for row in documents} == {"train", "validation"}
    before = (q.folders.features / "stage.json").stat().st_mtime_ns
    own_data.read_own(make_own(q.folders, speech, text, size="micro", seed=0))
    assert (q.folders.features / "stage.json").stat().st_mtime_ns == before


def test_own_recordings_keep_to_their_folder_and_texts_have_words(tmp_path):
    speech, away = tmp_path / "clips", tmp_path / "away.wav"
    speech.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, (8, 8_000))
    for number, wav in enumerate(noise):
        soundfile.write(speech / f"{number}.wav", wav, 16_000)
    soundfile.write(away, noise[0], 16_000)
    (speech / "7.wav").write_bytes((speech / "7.wav").read_bytes()[:5_000])
    rows = [{"audio": f"{i}.wav", "text": f"Word {i}.", "speaker": "Ann"} for i in range(8)]
    rows[6]["text"] = "...!?"
    rows += [{"audio": str(away), "text": "outside", "speaker": "Ann"}]
    artifacts.write_jsonl(speech / "manifest.jsonl", rows)
    (tmp_path / "text.txt").write_text("the sea was calm and nobody spoke " * 40)
    folders = Folders(tmp_path / "run")
    q = make_own(folders, speech, tmp_path / "text.txt", size="micro", seed=0)
    own_data.read_own(q)
    assert {row["audio"] for row in q.features.rows} == {f"{number}.wav" for number in range(6)}
    assert all(q.audio_of(row).parent == speech for row in q.features.rows)
    told = [row["reason"] for row in own_data.bad_recordings(q)]
    assert len(told) == 3 and "--audio-anywhere" in told[0]
    assert "6.wav: its text has no words" in told[1] and told[2].startswith("7.wav: is truncated")
    for made in (q.folders.clips / "manifest.jsonl", q.folders.features / "clips.jsonl"):
        assert str(tmp_path) not in made.read_text()
    allowed = dataclasses.replace(q, audio_anywhere=True)
    assert allowed.audio_of({"audio": "../away.wav"}).samefile(away)


@pytest.mark.slow
def test_the_whole_chain_on_own_data(own_folder, tmp_path):
    speech, text = own_folder
    run = tmp_path / "run"
    quickstart(run, size="micro", speech=speech, text=text)
    report = artifacts.read_json(run / "report.json")
    figures = figures_from_json(report)
    assert {"tokenizer/wer", "tokenizer/wer_shuffled", "tokenizer/codebook_usage",
            "text_to_token/wer", "speech_decoder/wer"} <= figures.keys()  # fmt: skip
    losses = {name for name in figures if name.startswith("held_out_loss/")}
    assert losses == {
        f"held_out_loss/q_{task}" for task in ("asr", "interleaved", "speech", "text", "tts")
    }
    assert report["claims"] == [] and len(report["bad_recordings"]) == 1
    assert "clip 11.mp3" in (run / "report.html").read_text(encoding="utf-8")
    times = {path: path.stat().st_mtime_ns for path in run.glob("*/checkpoints/*/meta.json")}
    quickstart(run, size="micro", speech=speech, text=text)  # nothing is made anew
    assert times == {p: p.stat().st_mtime_ns for p in run.glob("*/checkpoints/*/meta.json")}
    assert artifacts.read_json(run / "report.json")["figures"] == report["figures"]


@pytest.mark.parametrize("clips, steps", [(12, 500), (203, 507), (10_000, 1000)])
def test_few_recordings_are_not_learnt_by_heart(tmp_path, clips, steps):
    (tmp_path / "manifest.jsonl").write_text("{}\n" * clips + "\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text("words", encoding="utf-8")
    q = make_own(Folders(tmp_path / "run"), tmp_path, tmp_path / "text.txt", size="full", seed=0)
    assert q.config.tokenizer_training.steps == steps > q.config.tokenizer.quantizer.start_step
