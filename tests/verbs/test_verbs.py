"""Each verb on a tiny run: what it writes, what it says, and that it is a function of its seed."""

import json
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.data.sources import Rows
from speechlm_jax.errors import UserError
from speechlm_jax.evals.items import figures_from_items, read_items
from speechlm_jax.experiment import runs
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.train import checkpoints
from speechlm_jax.verbs import chat as verbs_chat
from speechlm_jax.verbs import encoding
from speechlm_jax.verbs import speak as verbs_speak
from speechlm_jax.verbs.chat import chat
from speechlm_jax.verbs.evaluate import evaluate
from speechlm_jax.verbs.speak import ids_to_file_names, speak
from speechlm_jax.verbs.synthesize import synthesize
from speechlm_jax.verbs.tokenize import tokenize

NOISE = np.random.default_rng(0).normal(0, 0.1, 1_280).astype(np.float32)
pytestmark = pytest.mark.filterwarnings("ignore")


def test_tokenize_reads_every_format_and_sets_one_bad_row_aside(run, recordings, tmp_path, caplog):
    said = tokenize([recordings], run=run, out=tmp_path / "codes")
    rows = list(artifacts.read_jsonl(tmp_path / "codes/codes.jsonl"))
    assert [row["id"] for row in rows] == ["a.wav", "b.flac", "c.ogg", "d.mp3"]
    assert all(row["text"] == "The CITY of Anna!" for row in rows)
    assert all(abs(len(row["codes"]) - 12) <= 1 for row in rows)  # a second at 12.5 codes
    assert (said["clips"], said["num_codes"]) == (4, sum(len(row["codes"]) for row in rows))
    assert len(said["set_aside"]) == 1 and "gone.wav" in said["set_aside"][0]
    assert "gone.wav" in caplog.text
    assert not artifacts.verify(tmp_path / "codes")
    # The codes are what a task of this run's vocabulary takes.
    task = Rows((tmp_path / "codes",), True, {"codes": "codes"})
    task.check(open_bundle(run).vocab)
    assert sum(len(list(task.examples(task.files(), s))) for s in ("train", "validation")) == 4


def test_a_recording_has_the_same_codes_alone_and_among_others(run, recordings, tmp_path):
    tokenize([recordings], run=run, out=tmp_path / "all")
    tokenize([recordings / "b.flac"], run=run, out=tmp_path / "one")
    together = {row["id"]: row for row in artifacts.read_jsonl(tmp_path / "all/codes.jsonl")}
    (alone,) = artifacts.read_jsonl(tmp_path / "one/codes.jsonl")
    assert alone == together["b.flac"]


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_tokenize_goes_on_where_it_was_killed(run, recordings, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(encoding, "SHARD_ROWS", 3)
    given = [recordings, recordings / "a.wav", recordings / "b.flac"]  # two of them twice
    whole = tokenize(given, run=run, out=tmp_path / "whole")
    assert (whole["clips"], len(whole["set_aside"])) == (4, 3)
    calls: list[int] = []

    def iter_codes(reader, mels, *, most, really=Transcriber.iter_codes):
        calls.append(most)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return really(reader, mels, most=most)

    monkeypatch.setattr(Transcriber, "iter_codes", iter_codes)
    with pytest.raises(KeyboardInterrupt):
        tokenize(given, run=run, out=tmp_path / "out")
    again = tokenize(given, run=run, out=tmp_path / "out")
    assert len(calls) == 3 + 1, "finished recordings are not read again"
    assert again | {"codes": ""} == whole | {"codes": ""}
    names = {"codes.jsonl", "bad.jsonl", artifacts.MANIFEST}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_synthesize_is_a_function_of_its_seed(run, tmp_path):
    texts = ["The city of Anna is London.", "it is the cat"]
    first = synthesize(texts, run=run, out=tmp_path / "a", seed=1)
    again = synthesize(texts, run=run, out=tmp_path / "b", seed=1)
    rows = list(artifacts.read_jsonl(tmp_path / "a/codes.jsonl"))
    assert rows == list(artifacts.read_jsonl(tmp_path / "b/codes.jsonl"))
    assert first | {"codes": ""} == again | {"codes": ""}
    assert all(set(row["codes"]) <= set(range(16)) for row in rows)
    assert first["clips"] + len(first["not_said"]) == 2
    synthesize(texts, run=run, out=tmp_path / "c", seed=1, voice="Ben")
    assert {row["speaker"] for row in artifacts.read_jsonl(tmp_path / "c/codes.jsonl")} == {"Ben"}


def test_speak_takes_numbers_a_file_or_text(run, recordings, tmp_path):
    said = speak("1 2 3 4 5", run=run, out=tmp_path / "codes.wav")
    assert len(read_wav(said["audio"][0])) == 5 * 16_000 / 12.5
    tokenize([recordings], run=run, out=tmp_path / "codes")
    said = speak(str(tmp_path / "codes/codes.jsonl"), run=run, out=tmp_path / "audio")
    assert len(said["audio"]) == 4 and all(len(read_wav(path)) for path in said["audio"])
    said = speak("the city of anna is london", run=run, out=tmp_path / "t.flac", seed=2)
    assert said["voice"] in ("Ann", "Ben") and len(read_wav(tmp_path / "t.flac"))


def test_distinct_ids_are_spoken_to_distinct_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        verbs_speak, "codes_to_wavs", lambda models, codes, **_: [NOISE] * len(codes)
    )
    ids = ["a/b", "a-b", "a b", 7]
    rows = [{"id": name, "codes": [1, 2]} for name in ids]
    artifacts.write_jsonl(tmp_path / "codes.jsonl", rows)
    said = speak(str(tmp_path / "codes.jsonl"), run=run, out=tmp_path / "audio")
    assert len(list((tmp_path / "audio").iterdir())) == len(ids)
    assert all(Path(path).parent == tmp_path / "audio" for path in said["audio"])
    assert Path(said["audio"][-1]).name == "7.wav"
    artifacts.write_jsonl(
        tmp_path / "codes.jsonl", [{"id": name, "codes": [1]} for name in (1, "1")]
    )
    with pytest.raises(UserError, match="id '1' stands in 2 rows"):
        speak(str(tmp_path / "codes.jsonl"), run=run, out=tmp_path / "audio")
    for name in (None, True, 1.0, ["a"]):
        artifacts.write_jsonl(tmp_path / "codes.jsonl", [rows[0], {"id": name, "codes": [1]}])
        with pytest.raises(UserError, match="codes.jsonl: row 2: its id is no text"):
            speak(str(tmp_path / "codes.jsonl"), run=run, out=tmp_path / "audio")


def test_file_names_are_distinct_on_every_file_system_and_readable():
    marked = ids_to_file_names(["a/b"])[0]
    ids = ["19-198-0000", "a/b", "a-b", "a b", marked, marked.upper(), "B", "b", "\u00df", "ss"]
    ids += [
        "..",
        ".",
        ".hid",
        "",
        "\ud800",
        "-",
        "\u2603",
        "caf\u00e9",
        "cafe\u0301",
        "\u4e2d" * 300,
    ]
    ids += ["x" * 49 + tail for tail in ("1", "12", "13")]
    names = ids_to_file_names(ids)
    folded = {unicodedata.normalize("NFD", name.casefold()) for name in names}
    assert len(folded) == len(ids)
    assert names[0] == ids[0] and names[2] == "a-b" and names[1].startswith("a-b-")
    assert all(re.fullmatch(r"[\w-][\w.-]*", name) for name in names)
    assert max(len(name.encode()) for name in names) < 230
    assert names == ids_to_file_names(ids)


@pytest.mark.parametrize("mode", ["text_guided", "speech_only"])
def test_chat_writes_a_reply_that_can_be_heard_and_read(run, recordings, tmp_path, mode):
    said = chat(recordings / "b.flac", run=run, out=tmp_path, mode=mode)
    assert json.loads((tmp_path / "reply.json").read_text()) == said
    assert (mode == "speech_only") <= (said["text"] == "")
    assert (said["audio"] is None) == (not said["codes"])
    if said["audio"]:
        assert len(read_wav(said["audio"])) == len(said["codes"]) * 1280


def test_evaluate_gives_figures_that_can_be_recounted(run, tmp_path):
    said = evaluate(run / "lm_interleaved", run=run, out=tmp_path / "figures")
    (name,) = said["figures"]
    assert name == "held_out_loss/some_text"
    items = read_items(said["items"])
    assert said["figures"][name]["value"] == figures_from_items(items)[name].value
    # An untrained model is about as good as a guess among all ids.
    size = open_bundle(run).vocab.size
    assert abs(said["figures"][name]["value"] - np.log(size)) < 1.5
    step = evaluate(run / "lm_interleaved/checkpoints/00000001", run=run, out=tmp_path / "figures")
    assert step["figures"] == said["figures"] and Path(step["items"]).parent.name == "interleaved-1"
    every = evaluate(run / "lm_interleaved/checkpoints", run=run, out=tmp_path / "figures")
    assert every["figures"] == said["figures"] and every["items"] == said["items"]


def test_evaluate_reads_the_weights_once(run, tmp_path, monkeypatch):
    read, really = [], checkpoints.load_params
    monkeypatch.setattr(
        checkpoints, "load_params", lambda *a, **given: read.append(a) or really(*a, **given)
    )
    evaluate(run / "lm_interleaved", run=run, out=tmp_path / "figures")
    assert len(read) == 1


def test_requests_are_split_over_all_devices_and_layers_as_asked(run, tmp_path, all_devices):
    said, figures = [], []
    for name, tensor in (("a", 1), ("b", 2)):
        given = {"out": tmp_path / name, "tensor": tensor, "seed": 1}
        synthesize(["the city of anna", "it is the cat"], run=run, voice="Ann", **given)
        said.append(list(artifacts.read_jsonl(tmp_path / name / "codes.jsonl")))
        scored = evaluate(run / "lm_interleaved", **given)["figures"]
        figures.append([figure["value"] for figure in scored.values()])
    assert said[0] == said[1] and said[0]
    np.testing.assert_allclose(*figures, rtol=1e-5)
    with pytest.raises(UserError, match="--tensor 3: does not divide the 4 devices"):
        synthesize(["it is"], run=run, out=tmp_path / "c", tensor=3)


@pytest.mark.parametrize(
    ("verb", "what", "rows"),
    [(verbs_chat.chat, "b.flac", 1), (speak, "it is the cat", 1), (speak, "codes.jsonl", 8)],
)
def test_what_answers_one_question_has_one_row(run, tmp_path, monkeypatch, verb, what, rows):
    opened = []

    def stop(place, *, batch_size):
        opened.append(batch_size)
        raise KeyboardInterrupt

    for module in (verbs_chat, verbs_speak):
        monkeypatch.setattr(module, "open_bundle", stop)
    with pytest.raises(KeyboardInterrupt):
        verb(what, run=run, out=tmp_path / "a.wav")
    assert opened == [rows]


def test_evaluate_needs_no_run_beyond_the_checkpoints_vocabulary(run, tmp_path):
    base = tmp_path / "vocab"
    base.mkdir()
    shutil.copy(run / "text.model", base)
    rows = run / "prepared/some_text/validation"
    vocab = artifacts.read_manifest(rows).extra["vocab"]
    artifacts.write_json(base / "vocab.json", vocab)
    said = evaluate(run / "lm_interleaved", run=base, out=tmp_path / "figures")
    assert list(said["figures"]) == ["held_out_loss/some_text"]
    with pytest.raises(UserError, match="trained with vocabulary"):
        artifacts.write_json(base / "vocab.json", {**vocab, "num_spare": 3})
        evaluate(run / "lm_interleaved", run=base, out=tmp_path / "figures")


def test_evaluate_finds_the_rows_of_a_run_that_was_moved(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = artifacts.read_json(moved / "lm_interleaved/checkpoints/00000001/meta.json")["config"]
    assert Path(config["data"]["mixture"]).is_relative_to(run)
    said = evaluate(moved / "lm_interleaved", run=moved, out=tmp_path / "figures")
    assert list(said["figures"]) == ["held_out_loss/some_text"]


def test_a_converted_model_is_scored_on_rows_that_are_named(run, tmp_path):
    weights, experiment = runs.load_language_model(run / "lm_interleaved")
    vocab, base = open_bundle(run).vocab, tmp_path / "base"
    runs.save_language_model(base, experiment.model, weights.params, vocab)
    with pytest.raises(UserError, match="nothing to score it on.*; give --mixture"):
        evaluate(base, out=tmp_path / "figures")
    said = evaluate(base, mixture=run / "prepared/mine.mixture.json", out=tmp_path / "figures")
    expected = evaluate(run / "lm_interleaved", out=tmp_path / "figures")
    assert said["figures"] == expected["figures"]
    with pytest.raises(UserError, match="--mixture gone: no such file; give the .mixture.json"):
        evaluate(base, mixture="gone", out=tmp_path / "figures")


def test_codes_of_another_tokenizer_name_both_sides(run, other_run, recordings, tmp_path):
    tokenize([recordings], run=run, out=tmp_path / "codes")
    ours, theirs = (open_bundle(r).codes.tokenizer for r in (run, other_run))
    with pytest.raises(UserError) as error:
        speak(str(tmp_path / "codes/codes.jsonl"), run=other_run, out=tmp_path / "audio")
    assert ours in str(error.value) and theirs in str(error.value)
    assert not (tmp_path / "audio").exists()
