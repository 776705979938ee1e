"""What a command is given is looked at in one way, whatever is wrong with it."""

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.verbs import paths

LONG = "x" * 5000


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A file, a link to nothing, codes, a run of an earlier version, a vocabulary."""
    (tmp_path / "file.txt").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes/codes.jsonl").touch()
    (tmp_path / "run/tokenizer").mkdir(parents=True)
    (tmp_path / "run/text.model").touch()
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab/vocab.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("check", "given", "told"),
    [
        (lambda path: paths.check_places([path]), "gone.wav", "no such audio file"),
        (lambda path: paths.check_places([path]), "file.txt", "0 bytes"),
        (lambda path: paths.check_places([path]), LONG, "cannot be opened"),
        (lambda path: paths.check_places([path]), "codes", "no manifest.jsonl and no recordings"),
        (paths.check_out_folder, "file.txt", "is a file; name a folder"),
        (paths.check_out_folder, "gone", "is a file; name a folder"),
        (paths.check_out_audio, "a.mp3", "audio is written as .wav or .flac"),
        (paths.check_out_audio, "a", "audio is written as .wav or .flac"),
        (paths.check_documents, "codes", "is a folder; give documents"),
        (paths.check_documents, "part[1].txt", "no such file; give documents"),
        (paths.check_documents, LONG, "no such file"),
        (lambda path: paths.check_folder(path, "a run"), "file.txt", "is a file; give a run"),
        (lambda path: paths.check_folder(path, "a run"), LONG, "no such folder; give a run"),
        (lambda path: paths.check_source(path, path), "nope", "no such folder; give a model"),
        (lambda path: paths.check_source(path, path), "codes", "is not empty"),
        (paths.check_bundle, "codes", "holds no run and no bundle"),
        (paths.check_bundle, "run", "`speechlm bundle upgrade"),
        (lambda path: paths.check_bundle(path, "chat"), "vocab", "has no chat model"),
        (paths.check_codes, LONG, "holds no run"),
    ],
)
def test_what_is_not_as_a_command_needs_it_is_named(here, check, given, told):
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        check(here / given if given != "nope" else here / "nope")


@pytest.mark.parametrize(
    ("what", "out", "told"),
    [
        ("nope.jsonl", "a", "no such file"),
        ("codes/codes.jsonl", "file.txt", "is a file; name a folder"),
        ("codes", "a.wav", "is a folder; give its codes.jsonl"),
        ("file.txt", "a.wav", "is a file of another kind"),
        (" ", "a.wav", "holds no words"),
        ("hello", "a.mp3", "audio is written as .wav or .flac"),
        (LONG, "a", "audio is written as .wav or .flac"),
    ],
)
def test_what_cannot_be_spoken_is_named(here, what, out, told):
    with pytest.raises(UserError, match=told):
        paths.check_speech(what, here / out)


def test_what_is_there_passes(here):
    (here / "part[1].txt").write_text("it is")
    paths.check_documents(here / "part[1].txt")
    (here / "below").mkdir()
    (here / "below/a.OGG").touch()
    paths.check_places([here, here / "part[1].txt"])
    paths.check_speech("codes/codes.jsonl", here / "a.wav")
    paths.check_speech("hello", here / "a.FLAC")
    paths.check_out_folder(here / "new/folder")
    paths.check_source(here / "codes", here / "new")
    paths.check_bundle(here / "vocab")
