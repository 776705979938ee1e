"""A run of an earlier version, which wrote no bundle.json: one line, and one command mends it."""

import json
import shutil

import pytest

from speechlm_jax import artifacts
from speechlm_jax.bundle.contents import BUNDLE
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.cli import main as cli
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def earlier(run, tmp_path):
    """The run as an earlier version left it."""
    folder = tmp_path / "earlier"
    shutil.copytree(run, folder)
    (folder / BUNDLE).unlink()
    return folder


def test_an_earlier_run_is_upgraded_by_one_command_that_every_other_names(
    run, earlier, tmp_path, capsys
):
    files = {path: path.stat().st_mtime_ns for path in earlier.rglob("*") if path.is_file()}
    for words in (
        ["speak", "it is", "--out", f"{tmp_path}/a.wav"], ["synthesize", "it is"],
        ["prepare", "a"], ["evaluate", f"{earlier}/lm_interleaved"],
    ):  # fmt: skip
        assert cli.main([*words, "--run", str(earlier)]) == EXIT_USAGE
        assert f"`speechlm bundle upgrade {earlier}`" in capsys.readouterr().err
    assert cli.main(["bundle", "upgrade", str(earlier)]) == EXIT_OK
    said = json.loads(capsys.readouterr().out)
    assert list(said["parts"]) == ["tokenizer", "text_to_token", "lm", "chat", "speech_decoder"]
    assert said["voices"] == ["Ann", "Ben"]
    assert artifacts.read_json(earlier / BUNDLE) == artifacts.read_json(run / BUNDLE)
    files_now = {path: path.stat().st_mtime_ns for path in earlier.rglob("*") if path.is_file()}
    assert files_now.keys() - files.keys() == {earlier / BUNDLE}
    assert all(files_now[path] == moment for path, moment in files.items())
    assert open_bundle(earlier).vocab == open_bundle(run).vocab
    assert (
        cli.main(["speak", "1 2", "--run", str(earlier), "--out", f"{tmp_path}/a.wav"]) == EXIT_OK
    )


def test_models_of_another_tokenizer_are_left_out_with_a_warning(
    earlier, other_run, capsys, caplog
):
    for name in ("lm_interleaved", "speech_decoder"):
        shutil.rmtree(earlier / name)
        shutil.copytree(other_run / name, earlier / name)
    assert cli.main(["bundle", "upgrade", str(earlier)]) == EXIT_OK
    out, err = capsys.readouterr()
    assert list(json.loads(out)["parts"]) == ["tokenizer", "text_to_token", "chat"]
    for name in ("lm_interleaved", "speech_decoder"):
        (line,) = [line for line in err.splitlines() if f"earlier/{name}: was trained with" in line]
        assert "it is left out of" in line


def test_what_is_no_earlier_run_is_not_upgraded(run, tmp_path, capsys):
    for folder in (tmp_path, run / "lm_interleaved"):
        assert cli.main(["bundle", "upgrade", str(folder)]) == EXIT_USAGE
        assert "is no run of an earlier version" in capsys.readouterr().err
    shutil.copy(run / "text.model", tmp_path)
    (tmp_path / "tokenizer").mkdir()
    assert cli.main(["bundle", "upgrade", str(tmp_path)]) == EXIT_USAGE
    assert "tokenizer: holds no whole checkpoint" in capsys.readouterr().err
