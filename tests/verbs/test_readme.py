"""README's way from recordings to packed rows, as it is printed there."""

import glob
import json
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm_jax import artifacts
from speechlm_jax.cli import main as cli
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.filterwarnings("ignore")


def printed(start: str) -> list[str]:
    """The commands of README that begin so, as words."""
    lines = [line.strip() for line in README.read_text(encoding="utf-8").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def expanded(words: list[str]) -> list[str]:
    """As a shell expands them."""
    return [name for word in words for name in sorted(glob.glob(word)) or [word]]


@pytest.fixture
def here(run, tmp_path, monkeypatch) -> Path:
    """A folder with the run, ten recordings and a vocabulary of stories, as README makes it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(run)
    recordings = tmp_path / "my_recordings"
    recordings.mkdir()
    for i in range(10):
        noise = np.random.default_rng(i).normal(0, 0.1, 16_000)
        soundfile.write(recordings / f"{i}.flac", noise, 16_000)
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories/one.txt").write_text("It is the cat, and it is the dog.\n" * 20)
    monkeypatch.chdir(tmp_path)
    (vocab,) = printed("speechlm vocab stories/*")
    assert cli.main(expanded(vocab)[1:]) == EXIT_OK
    return tmp_path


def write_lab(prefix: str) -> None:
    """The lines of README's my_lab.py that read codes; a task may be registered once a process."""
    lines = re.findall(r"^tasks\.(?:speech|asr)\(.*$", README.read_text(encoding="utf-8"), re.M)
    assert len(lines) == 2
    text = "\n".join(["from speechlm_jax.data import tasks", *lines]).replace("lab_", prefix)
    Path(f"my_{prefix}lab.py").write_text(text)


def prepare(task: str, prefix: str) -> int:
    (words,) = printed("speechlm prepare lab ")
    words = [{"lab": task, "my_lab.py": f"my_{prefix}lab.py"}.get(word, word) for word in words]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cli.main([*words[1:], "--length", "64"])


def test_recordings_with_a_manifest_become_speech_and_asr(here, capsys):
    rows = [{"audio": f"{i}.flac", "text": "It is the cat.", "speaker": "Ann"} for i in range(10)]
    artifacts.write_jsonl(here / "my_recordings/manifest.jsonl", rows)
    (tokenize,) = printed("speechlm tokenize my_recordings/*")
    capsys.readouterr()
    assert cli.main(expanded(tokenize)[1:]) == EXIT_OK
    said = json.loads(capsys.readouterr().out)
    assert (said["clips"], said["without_text"], said["set_aside"]) == (10, 0, [])
    write_lab("told_")
    for task in ("told_speech", "told_asr"):
        assert prepare(task, "told_") == EXIT_OK
        said = json.loads(capsys.readouterr().out)
        splits = [said["tasks"][task].get(split) for split in ("train", "validation")]
        assert sum(split["documents"] for split in splits if split) == 10


def test_recordings_without_text_are_speech_and_asr_says_how_to_give_it(here, capsys):
    (here / "my_recordings/3.txt").write_text("it is the cat")
    capsys.readouterr()
    (tokenize,) = printed("speechlm tokenize my_recordings/*")
    assert cli.main(expanded(tokenize)[1:]) == EXIT_OK
    out, err = capsys.readouterr()
    assert json.loads(out)["without_text"] == 9
    assert "9 of 10 recordings have no text" in err and "clip.txt" in err
    assert not Path(here / "codes/bad.jsonl").read_text()
    write_lab("mute_")
    assert prepare("mute_speech", "mute_") == EXIT_OK
    capsys.readouterr()
    assert prepare("mute_asr", "mute_") == EXIT_USAGE
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "codes.jsonl: row '0.flac' has no field 'text'" in line
    assert "manifest.jsonl or clip.txt beside them" in line
