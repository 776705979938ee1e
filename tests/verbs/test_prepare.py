"""`speechlm prepare` takes vocabulary and data of the run that it is told, whatever is exported."""

import json
import warnings
from pathlib import Path

import pytest

from speechlm_jax import artifacts
from speechlm_jax.cli import main as cli
from speechlm_jax.cli.options import DEFAULT_RUN
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = Path(__file__).parents[2] / "tasks/quickstart.py"


def make_base(folder: Path, lines: int) -> Path:
    """A folder with a vocabulary, as `convert` leaves one, and text of so many lines."""
    text = TextTokenizer.train(["a red cat"], kind="word")
    text.save(folder / "tokenizer.json")
    vocab = Vocab(text.size, 16, 12.5, text.fingerprint, "tokenizer-a")
    artifacts.write_json(folder / "vocab.json", vocab.to_json())
    artifacts.write_json(folder / "sources.json", {"text": ["a.txt"]})
    (folder / "a.txt").write_text("a red cat\n" * lines)
    return folder


def prepared(out: Path, *argv: object) -> dict:
    command = ["prepare", "q_text", "--module", TASKS, "--out", out, "--length", 32, *argv]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main([*map(str, command)]) == EXIT_OK
    return artifacts.read_json(out / "q_text.mixture.json")["tasks"][0]["splits"]


@pytest.mark.parametrize(("given", "lines"), [("--run", 90), ("", 30)])
def test_the_option_wins_over_what_is_exported_and_that_over_the_default(
    tmp_path, monkeypatch, capsys, given, lines
):
    exported, told = make_base(tmp_path / "exported", 30), make_base(tmp_path / "told", 90)
    monkeypatch.setenv("SPEECHLM_RUN", str(exported))
    splits = prepared(tmp_path / "rows", *([given, told] if given else []))
    counts = json.loads(capsys.readouterr().out)["tasks"]["q_text"]
    assert sum(counts[split]["documents"] for split in splits) == lines
    assert cli.os.environ["SPEECHLM_RUN"] == str(exported), "it is as it was"


def test_nothing_is_left_exported_and_a_second_run_is_not_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SPEECHLM_RUN", raising=False)
    for name, lines in (("one", 30), ("two", 50)):
        splits = prepared(tmp_path / name / "rows", "--run", make_base(tmp_path / name, lines))
        counts = json.loads(capsys.readouterr().out)["tasks"]["q_text"]
        assert sum(counts[split]["documents"] for split in splits) == lines
        assert "SPEECHLM_RUN" not in cli.os.environ


def test_every_command_has_the_same_default_run(monkeypatch):
    monkeypatch.setenv("SPEECHLM_RUN", "runs/mine")
    for command in (["speak", "x"], ["prepare", "x"]):
        assert cli.parse(command).run_folder == Path("runs/mine")
        assert cli.parse([*command, "--run", "runs/other"]).run_folder == Path("runs/other")
    monkeypatch.setenv("SPEECHLM_RUN", "")
    assert cli.parse(["speak", "x"]).run_folder == DEFAULT_RUN


def test_a_task_that_fails_is_one_line_and_code_2(tmp_path, capsys):
    (tmp_path / "my_lab_that_fails.py").write_text(
        "from speechlm_jax.data import tasks\n"
        "def documents(split):\n"
        "    return {}['shelf']\n"
        "tasks.text_function('den_that_fails', documents)\n"
    )
    command = [
        "prepare", "den_that_fails", "--module", tmp_path / "my_lab_that_fails.py", "--run",
        make_base(tmp_path / "base", 9), "--out", tmp_path / "rows",
    ]  # fmt: skip
    assert cli.main([*map(str, command)]) == EXIT_USAGE
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("speechlm: ")]
    assert out == "" and lines == [
        "speechlm: error: task den_that_fails, split validation: KeyError: 'shelf' "
        "(my_lab_that_fails.py:3)"
    ]
