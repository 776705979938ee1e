"""Bad input: one clear line that names it and what to do, exit code 2, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.cli import main as cli
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE

pytestmark = pytest.mark.filterwarnings("ignore")


def good_wav(path: Path, *, seconds: float = 1.0, rate: int = 16_000) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, int(rate * seconds))
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def unreadable(path):
    path.write_bytes(b"this is a letter, not a recording" * 40)


def empty_file(path):
    path.write_bytes(b"")


def empty_recording(path):
    soundfile.write(path, np.zeros(0), 16_000)


def truncated(path):
    good_wav(path)
    path.write_bytes(path.read_bytes()[:9_000])


def silent(path):
    soundfile.write(path, np.zeros(16_000), 16_000)


def not_a_number(path):
    wav = np.full(16_000, 0.1, np.float32)
    wav[100] = np.nan
    soundfile.write(path, wav, 16_000, subtype="FLOAT")


def wrong_rate(path):
    good_wav(path, seconds=30, rate=100)


def absent(path):
    pass


BAD = {
    unreadable: "not readable audio",
    empty_file: "is empty (0 bytes)",
    empty_recording: "is empty (0 samples)",
    truncated: "is truncated",
    silent: "is silent",
    not_a_number: "NaN",
    wrong_rate: "sample rate 100 Hz",
    absent: "no such audio file",
}


def refused(capsys, *argv: object) -> str:
    """Runs a command that must be refused, and gives its one line."""
    assert cli.main(list(map(str, argv))) == EXIT_USAGE
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("speechlm: ")]
    assert out == "" and len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_recording_alone_is_refused(run, tmp_path, capsys, spoil):
    spoil(tmp_path / "bad.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/codes.jsonl").write_text("what was made before\n")
    for command in ("tokenize", "chat"):
        line = refused(
            capsys, command, tmp_path / "bad.wav", "--run", run, "--out", tmp_path / "out"
        )
        assert "bad.wav" in line and BAD[spoil] in line
    assert (tmp_path / "out/codes.jsonl").read_text() == "what was made before\n"


def test_bad_recordings_among_others_are_set_aside_and_named(run, tmp_path, capsys):
    good_wav(tmp_path / "good.wav")
    rows = [{"audio": "good.wav", "text": "it is", "speaker": "Ann"}]
    for spoil in BAD:
        spoil(tmp_path / f"{spoil.__name__}.wav")
        rows.append({"audio": f"{spoil.__name__}.wav", "text": "it is", "speaker": "Ann"})
    rows.append({"audio": "good.wav", "speaker": "Ann"})
    artifacts.write_jsonl(tmp_path / "manifest.jsonl", rows)
    assert cli.main(["tokenize", str(tmp_path), "--run", str(run), "--out", f"{tmp_path}/o"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["clips"] == 1 and len(said["set_aside"]) == len(BAD) + 1
    for spoil, reason in BAD.items():
        told = [line for line in err.splitlines() if f"{spoil.__name__}.wav" in line]
        assert len(told) == 1 and "set aside" in told[0]
        assert reason in told[0] or spoil is absent
    assert "has no field 'text'" in err


def test_a_folder_without_a_manifest_and_one_without_a_good_row(run, tmp_path, capsys):
    to_out = ("--run", run, "--out", tmp_path / "out")
    assert "has no manifest.jsonl and no recordings" in refused(
        capsys, "tokenize", tmp_path, *to_out
    )
    row = {"audio": "gone.wav", "text": "it is", "speaker": "Ann"}
    artifacts.write_jsonl(tmp_path / "manifest.jsonl", [row])
    assert "gone.wav" in refused(capsys, "tokenize", tmp_path, *to_out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("latin-1", "is not UTF-8; convert it"), ("utf-16", "is UTF-16 or UTF-32")],
)
def test_text_in_another_encoding(run, tmp_path, capsys, encoding, expected):
    path = tmp_path / "text.txt"
    path.write_text("it is caf\u00e9\n" * 9, encoding=encoding)
    line = refused(capsys, "interleave", path, "--run", run, "--out", tmp_path / "out")
    assert f"text.txt: {expected}" in line
    good_wav(tmp_path / "a.wav")
    rows = [{"audio": "a.wav", "text": "it is", "speaker": "Ann"}]
    artifacts.write_jsonl(tmp_path / "manifest.jsonl", rows)
    line = refused(
        capsys, "quickstart", "--speech", tmp_path, "--text", path, "--out", tmp_path / "run"
    )
    assert f"text.txt: {expected}" in line


def test_text_that_is_not_there_or_holds_no_words(run, tmp_path, capsys):
    to_out = ("--run", run, "--out", tmp_path / "out")
    assert "no such file" in refused(capsys, "interleave", tmp_path / "gone.txt", *to_out)
    (tmp_path / "dots.txt").write_text("...\n\n!\n")
    assert "holds no words" in refused(capsys, "interleave", tmp_path / "dots.txt", *to_out)
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "txt": "it is"}\n')
    line = refused(capsys, "interleave", tmp_path / "rows.jsonl", *to_out)
    assert "rows.jsonl: holds no document; " in line and 'rows.jsonl:1: has no "text"' in line
    assert not (tmp_path / "out").exists()
    assert "holds no words" in refused(capsys, "synthesize", "?!", *to_out)
    assert "no word 'zebra'" in refused(capsys, "synthesize", "it is the zebra", *to_out)
    assert "'$5.50' can be read in several ways" in refused(
        capsys, "synthesize", "it is $5.50", *to_out
    )


def test_interleave_checks_options_paths_and_speakers_before_a_model_is_loaded(
    run, tmp_path, capsys, monkeypatch
):
    def loaded(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Bundle, "make_text_to_token", loaded)
    (tmp_path / "a.txt").write_text("it is the cat\n")
    rows = [{"text": "it is"}, {"text": "the cat", "speaker": "Benn", "id": "x"}]
    artifacts.write_jsonl(tmp_path / "rows.jsonl", rows)
    artifacts.write_jsonl(tmp_path / "numbers.jsonl", [{"text": "it is", "speaker": 3}])
    documents = tmp_path / "documents.jsonl"
    artifacts.write_jsonl(documents, rows[:1])
    for file, options, expected in (
        ("a.txt", ("--span-corruption-ratio", "nan"), "'nan' is no number from 0 to 1;"),
        ("a.txt", ("--mean-span-length", "inf"), "'inf' is no number above 0 to 1000000;"),
        ("", (), "is a folder"),
        ("a.txt", ("--out", tmp_path / "a.txt"), "is a file; name a folder"),
        ("documents.jsonl", ("--out", tmp_path), "would be overwritten"),
        ("a.txt", ("--run", tmp_path), "holds no run"),
        ("rows.jsonl", (), "row 'x': speaker 'Benn' is none of the run's 2 voices; did you mean"),
        ("rows.jsonl", (), "did you mean 'Ben'?"),
        ("numbers.jsonl", (), "speaker '3' is none of the run's 2 voices"),
    ):
        to = {"--run": run, "--out": tmp_path / "out"} | dict([options] if options else [])
        argv = [word for option in to.items() for word in option]
        assert expected in refused(capsys, "interleave", tmp_path / file, *argv)
    assert not (tmp_path / "out").exists()
    assert list(artifacts.read_jsonl(documents)) == rows[:1]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ("interleave", "x.txt", "--span-corruption-ratio", "1.5"),
            "'1.5' is no number from 0 to 1;",
        ),
        (("interleave", "x.txt", "--mean-span-length", "0"), "'0' is no number above 0 to"),
        (("synthesize", "it is", "--temperature", "-1"), "'-1' is no number from 0 to 100;"),
        (("synthesize", "it is", "--voice", "Anne"), "did you mean 'Ann'?"),
        (("speak", "1 2 16"), "numbers from 0 to 15"),
        (("speak", "it is", "--out", "speech.aiff"), "written as .wav or .flac"),
        (("speak", "it is", "--out", "."), "written as .wav or .flac"),
        (("speak", "gone.jsonl"), "gone.jsonl: no such file"),
        (("speak", "9" * 5_000), "numbers from 0 to 15"),
    ],
)
def test_a_number_or_name_out_of_range(run, capsys, argv, expected):
    assert expected in refused(capsys, *argv, "--run", run)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([1.5], "whole numbers"),
        ([True], "whole numbers"),
        ("12", "whole numbers"),
        (None, "whole numbers"),
        ([10**30], "numbers from 0 to 15"),
        ([], "at least one"),
    ],
)
def test_codes_that_are_none(run, tmp_path, capsys, codes, expected):
    rows = [{"id": "good", "codes": [1]}, {"id": "bad", "codes": codes}]
    artifacts.write_jsonl(tmp_path / "codes.jsonl", rows)
    line = refused(capsys, "speak", tmp_path / "codes.jsonl", "--run", run, "--out", tmp_path / "o")
    assert "codes.jsonl: row 'bad'" in line and expected in line
    assert not (tmp_path / "o").exists()


def test_an_out_that_is_a_file_is_refused_before_the_work(run, tmp_path, capsys):
    (tmp_path / "out").touch()
    artifacts.write_jsonl(tmp_path / "codes.jsonl", [{"id": "a", "codes": [1]}])
    for what, told in ((tmp_path, "give its codes.jsonl"), (tmp_path / "a.wav", "of another kind")):
        good_wav(tmp_path / "a.wav")
        assert told in refused(capsys, "speak", what, "--run", run, "--out", tmp_path / "o.wav")
    for argv in (("speak", tmp_path / "codes.jsonl"), ("tokenize", good_wav(tmp_path / "a.wav"))):
        assert "out: is a file" in refused(capsys, *argv, "--run", run, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "argv",
    [
        ("tokenize", "--help"),
        ("speak", "--help"),
        ("tokenize", "gone.wav"),
        ("tokenize", ".", "--run", "nowhere"),
        ("tokenize", "x" * 5_000),
        ("speak", "it is", "--run", "nowhere"),
        ("speak", "it is", "--run", "x" * 5_000),
        ("speak", "x" * 5_000 + ".jsonl"),
    ],
)
def test_help_and_wrong_paths_do_not_wait_for_jax(tmp_path, argv):
    code = (
        "import sys\n"
        "from speechlm_jax.cli import main\n"
        f"try: code = main.main({argv!r})\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(configs.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == (EXIT_OK if "--help" in argv else EXIT_USAGE), done.stderr


def test_an_unknown_config_field(run, tmp_path, capsys):
    meta = artifacts.read_json(run / "lm_interleaved/checkpoints/00000001/meta.json")
    (tmp_path / "mine.json").write_text(json.dumps(meta["config"]))
    line = refused(
        capsys, "train", tmp_path / "mine.json", "train.total_step=3", "--workdir", tmp_path / "w"
    )
    assert "train.total_step: unknown field" in line and "did you mean 'total_steps'?" in line
    meta["config"]["train"]["total_stepz"] = 3
    (tmp_path / "mine.json").write_text(json.dumps(meta["config"]))
    line = refused(capsys, "train", tmp_path / "mine.json", "--workdir", tmp_path / "w")
    assert "did you mean 'total_steps'?" in line and not (tmp_path / "w").exists()


def test_a_checkpoint_of_another_vocabulary(run, other_run, tmp_path, capsys):
    ours, theirs = (open_bundle(r).vocab.fingerprint for r in (run, other_run))
    checkpoint = other_run / "lm_interleaved"
    to_out = ("--run", run, "--out", tmp_path / "out")
    line = refused(capsys, "evaluate", checkpoint, *to_out)
    assert str(checkpoint) in line and ours in line and theirs in line
    assert not (tmp_path / "out").exists()
    mixed = tmp_path / "mixed"
    shutil.copytree(run, mixed)
    for name in ("chat", "text_to_token"):
        shutil.rmtree(mixed / name)
        shutil.copytree(other_run / name, mixed / name)
    good_wav(tmp_path / "a.wav")
    to_mixed = ("--run", mixed, "--out", tmp_path / "out")
    for argv in (("chat", tmp_path / "a.wav"), ("synthesize", "it is")):
        assert "was trained with vocabulary" in refused(capsys, *argv, *to_mixed)


def test_what_is_no_language_model_and_no_run(run, tmp_path, capsys):
    to_out = ("--run", run, "--out", tmp_path / "out")
    assert "kind text_to_token" in refused(capsys, "evaluate", run / "text_to_token", *to_out)
    assert "holds a SpeechTokenizer" in refused(capsys, "evaluate", run / "tokenizer", *to_out)
    assert "no whole checkpoint" in refused(capsys, "evaluate", tmp_path, *to_out)
    assert "holds no run" in refused(capsys, "speak", "it is", "--run", tmp_path)
    without = tmp_path / "own"
    shutil.copytree(run, without)
    shutil.rmtree(without / "chat")
    good_wav(tmp_path / "a.wav")
    assert "has no chat model" in refused(capsys, "chat", tmp_path / "a.wav", "--run", without)


def test_prepare_with_a_users_own_file_and_mistakes_in_it(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("it is the cat of anna\n" * 40)
    (tmp_path / "my_lab_of_this_test.py").write_text(
        "from pathlib import Path\n"
        "from speechlm_jax.data import tasks\n"
        "tasks.text('den_text', Path(__file__).with_name('a.txt'))\n"
        "tasks.text('den_gone', Path(__file__).with_name('gone.txt'))\n"
        "tasks.mixture('den', {'den_text': 1.0})\n"
    )
    own = (
        "--module", tmp_path / "my_lab_of_this_test.py", "--run", run, "--out", tmp_path / "rows",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(["prepare", *map(str, ("den", *own, "--length", 32))]) == EXIT_OK
    said = json.loads(capsys.readouterr().out)
    assert said["vocabulary"] == open_bundle(run).vocab.fingerprint
    assert said["tasks"]["den_text"]["train"]["documents"] > 30
    before = sorted((tmp_path / "rows").rglob("*"))
    line = refused(capsys, "prepare", "denn", *own)
    assert "no task or mixture is named 'denn'; did you mean 'den'?" in line
    assert "gone.txt: no such text file" in refused(capsys, "prepare", "den_gone", *own)
    assert sorted((tmp_path / "rows").rglob("*")) == before


def test_the_command_itself_ends_with_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "speechlm_jax.cli.main", "speak", "it is", "--run", tmp_path],
        cwd=Path(configs.__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == EXIT_USAGE and done.stdout == ""
    assert done.stderr.startswith("speechlm: error: ") and done.stderr.count("\n") == 1
