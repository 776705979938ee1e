"""Bundles of stages that were trained here: made, opened, used by every command.

One file: the stages take half a minute to train, once for each process that tests.
"""

import json
import shutil

import numpy as np
import pytest
from tiny_stages import MEL, TEXTS, command

from speechlm_jax import artifacts
from speechlm_jax.audio.recordings import Features
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.bundle.contents import BUNDLE, PART_NAMES, read_contents
from speechlm_jax.bundle.open import open_bundle, open_codes, open_vocab
from speechlm_jax.cli import main as cli
from speechlm_jax.codes import read_codes, read_identity
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE, UserError
from speechlm_jax.experiment import runs

pytestmark = pytest.mark.filterwarnings("ignore")
GIVEN = {"tokenizer": "tok", "text-to-token": "tts", "lm": "lm", "speech-decoder": "decoder"}


@pytest.fixture
def run(capsys):
    """run(words): what a command prints, as JSON data."""

    def run(*words):
        code = cli.main([*map(str, words), "--quiet"])
        out, err = capsys.readouterr()
        assert code == EXIT_OK, err
        return json.loads(out)

    return run


@pytest.fixture
def refused(capsys):
    """refused(words): the one line of a command that must be refused."""

    def refused(*words):
        capsys.readouterr()
        assert cli.main([*map(str, words), "--quiet"]) == EXIT_USAGE
        err = capsys.readouterr().err
        assert err.startswith("speechlm: error: ") and err.count("\n") == 1, err
        return err

    return refused


def parts(stages, **other):
    """The options of `bundle make` for these trainings."""
    given = {name: stages / folder for name, folder in {**GIVEN, **other}.items()}
    return [word for name, folder in given.items() for word in (f"--{name}", folder)]


def joined(stages, name, run):
    out = stages / name
    if not out.exists():
        run("bundle", "make", out, *parts(stages))
    return out


def test_trainings_that_were_joined_are_all_that_every_command_needs(stages, run, tmp_path):
    out = joined(stages, "joined", run)
    shown = run("bundle", "show", out)
    assert list(shown["parts"]) == list(PART_NAMES) and shown["voices"] == ["Ann", "Ben"]
    assert shown["mel"]["num_mels"] == 40 and shown["mel"]["floor"] == "fixed"
    assert [path.name for path in out.iterdir()] == [BUNDLE]
    assert str(stages) not in (out / BUNDLE).read_text(), "paths are relative"
    run("tokenize", stages / "clips", "--run", out, "--out", tmp_path / "codes")
    assert list(read_codes(tmp_path / "codes")) == list(read_codes(stages / "codes"))
    said = run("synthesize", "it is the cat", "--run", out, "--out", tmp_path / "said")
    assert said["num_codes"] and read_identity(tmp_path / "said").to_json() == shown["codes"]
    (tmp_path / "a.txt").write_text("It is the cat, the city of Anna.\n")
    told = ("--span-corruption-ratio", 1, "--run", out, "--out", tmp_path / "documents")
    assert run("interleave", tmp_path / "a.txt", *told)["spans"] > 0
    spoken = run("speak", "1 2 3 4", "--run", out, "--out", tmp_path / "a.wav", "--voice", "Ben")
    assert len(read_wav(tmp_path / "a.wav")) == 4 * 1280 and spoken["seconds"] == 0.32
    run("speak", "it is the cat", "--run", out, "--out", tmp_path / "b.wav")
    answer = run("chat", stages / "clips/0.wav", "--run", out, "--out", tmp_path / "reply")
    assert artifacts.read_json(tmp_path / "reply/reply.json") == answer
    (figure,) = run("evaluate", stages / "lm", "--run", out, "--out", tmp_path)["figures"].values()
    assert 0 < figure["value"] < 2 * np.log(open_bundle(out).vocab.size)


def test_a_training_alone_is_a_bundle_of_one_part(stages, run, refused, tmp_path):
    for name, part in zip(GIVEN.values(), ("tokenizer", "text_to_token", "lm", "speech_decoder"),
                          strict=True):  # fmt: skip
        assert list(run("bundle", "show", stages / name)["parts"]) == [part]
    said = run("synthesize", "it is the cat", "--run", stages / "tts", "--out", tmp_path / "said")
    assert said["clips"] == 1
    for checkpoint in (stages / "lm", stages / "lm/checkpoints/00000002"):
        assert run("evaluate", checkpoint, "--out", tmp_path)["figures"]
    to_out = ("--run", stages / "tok", "--out", tmp_path / "a.wav")
    line = refused("speak", "it is the cat", *to_out)
    assert "tok: has no speech decoder (it has: speech tokenizer)" in line
    assert "`speechlm bundle make --speech-decoder" in line
    assert "has no text-to-token model" in refused("synthesize", "it is", *to_out)
    assert "has no chat model" in refused("chat", stages / "clips/0.wav", *to_out)


def test_parts_that_do_not_belong_together_are_refused_with_both_named(stages, refused, tmp_path):
    other = stages / "other_tok"
    shutil.copytree(stages / "tok", other, dirs_exist_ok=True)
    meta = other / "checkpoints/00000002/meta.json"
    artifacts.write_json(meta, {**artifacts.read_json(meta), "fingerprint": "of another"})
    for name, kept in (("lm", "lm"), ("text-to-token", "tts"), ("speech-decoder", "decoder")):
        given = ("--tokenizer", other, f"--{name}", stages / kept)
        line = refused("bundle", "make", stages / "refused", *given)
        assert f"{other} (speech tokenizer)" in line and f"{stages / kept} (" in line, line
        assert "has codes of tokenizer" in line and "give parts of the same codes" in line
    line = refused("bundle", "make", stages / "refused", "--lm", stages / "tts")
    assert "tts: has no language model (it has: text-to-token model)" in line
    line = refused("bundle", "make", tmp_path / "far", "--lm", stages / "lm")
    assert "lies outside of" in line and not (tmp_path / "far").exists()
    assert not (stages / "refused").exists()
    assert "holds a run or a vocabulary; give a new folder" in refused(
        "bundle", "make", stages / "lm", "--tokenizer", stages / "tok"
    )
    assert "--lm: is for `speechlm bundle make` alone" in refused(
        "bundle", "show", stages / "lm", "--lm", stages / "lm"
    )
    assert "no part is given" in refused("bundle", "make", stages / "refused")


def test_weights_that_changed_since_are_refused(stages, run, refused, tmp_path):
    out = joined(stages, "stale", run)
    contents = artifacts.read_json(out / BUNDLE)
    contents["parts"]["speech_decoder"]["fingerprint"] = "0123456789abcdef"
    artifacts.write_json(out / BUNDLE, contents)
    assert not run("bundle", "show", out)["parts"]["speech_decoder"]["is_as_joined"]
    line = refused("speak", "1 2 3", "--run", out, "--out", tmp_path / "a.wav")
    assert "decoder: holds weights" in line and "the bundle has 0123456789abcdef" in line


def test_a_part_may_come_from_another_bundle_or_be_one_checkpoint(stages, run):
    first = joined(stages, "joined", run)
    step = stages / "lm/checkpoints/00000002"
    run("bundle", "make", stages / "second", "--tokenizer", first, "--lm", step)
    contents = read_contents(stages / "second")
    assert contents.parts["tokenizer"].folder == "../tok"
    assert contents.parts["chat"].folder == "../lm/checkpoints/00000002"
    assert open_bundle(stages / "second").vocab == open_bundle(first).vocab


def test_recordings_are_read_by_the_mel_settings_that_the_tokenizer_was_trained_on(stages):
    """40 bins and a fixed floor: what `tokenize` reads is what the training has read."""
    features, bundle = Features(stages / "features"), open_bundle(stages / "tok")
    assert bundle.mel == MEL == features.mel_config
    told = runs.load_reader(stages / "tok")[0].config.mel
    assert told == MEL
    trained_on = bundle.reader.mels_to_codes([features.mel(i) for i in range(len(features))])
    read = {row["id"]: row["codes"] for row in read_codes(stages / "codes")}
    for row, codes in zip(features.rows, trained_on, strict=True):
        # The features are kept in 16 bits: a frame on the edge of two codes may fall to the other.
        assert len(codes) == len(read[row["id"]])
        assert np.mean(np.array(read[row["id"]]) == codes) > 0.8


def test_a_tokenizer_of_before_has_its_settings_from_what_its_checkpoint_tells(stages, tmp_path):
    old = tmp_path / "tok"
    shutil.copytree(stages / "tok", old)
    path = old / "checkpoints/00000002/meta.json"
    meta = artifacts.read_json(path)
    del meta["config"]["model"]["mel"]
    artifacts.write_json(path, meta)
    assert runs.trained_mel(old) == MEL
    assert runs.trained_codes(old) == runs.trained_codes(stages / "tok"), "codes keep their name"
    meta["described"] = {}
    artifacts.write_json(path, meta)
    with pytest.raises(UserError, match="did not keep its mel settings"):
        runs.trained_mel(old)


def test_a_training_keeps_its_vocabularies_beside_its_checkpoints(stages):
    codes = read_identity(stages / "codes")
    for name in ("tok", "tts", "lm"):
        vocab, text = open_vocab(stages / name)
        assert vocab.codes == codes and not vocab.voices
        assert [text.decode(text.encode(line)) for line in TEXTS] == [*TEXTS]
        assert open_codes(stages / name) == codes == open_codes(stages / "codes")
    assert artifacts.read_json(stages / "tts/vocab.json")["voices"] == ["Ann", "Ben"]
    assert open_bundle(stages / "tts").voices == ("Ann", "Ben")
    assert artifacts.read_json(stages / "decoder/voices.json") == ["Ann", "Ben"]
    assert open_vocab(stages / "lm")[0] == open_vocab(stages / "tok")[0]


def test_a_training_of_before_tells_its_vocabulary_and_names_what_it_lacks(stages, tmp_path):
    shutil.copytree(stages / "tts", tmp_path / "tts")
    for name in ("vocab.json", "text.model"):
        (tmp_path / "tts" / name).unlink()
    bundle = open_bundle(tmp_path / "tts")
    assert bundle.voiced_vocab == open_bundle(stages / "tts").voiced_vocab
    with pytest.raises(UserError, match="tts: has no text vocabulary; copy the one"):
        bundle.say("cat")
    command("evaluate", stages / "lm", "--out", tmp_path / "figures")
