"""Every sub-command: its help shows an example that parses, and it calls a verb that exists."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest

from speechlm_jax.cli import bench, convert, options
from speechlm_jax.cli import main as cli
from speechlm_jax.errors import UserError
from speechlm_jax.lm import presets
from speechlm_jax.lm.sizes import SIZES
from speechlm_jax.nn.flash import Kernel
from speechlm_jax.nn.language_model import Dtype

PACKAGE = Path(cli.__file__).parents[1]


def _help(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        cli.parse([command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", options.COMMANDS)
def test_help_shows_an_example_that_parses(command, capsys):
    text = _help(command, capsys)
    lines = [line.strip() for line in text.partition("\nexample:\n")[2].splitlines()]
    examples = [line for line in lines if line]
    assert examples and all(line.startswith(f"speechlm {command}") for line in examples)
    for line in examples:
        arguments = cli.parse(shlex.split(line)[1:])
        assert callable(arguments.run)


@pytest.mark.parametrize("command", options.COMMANDS)
def test_every_command_takes_the_common_options(command, capsys):
    text = _help(command, capsys)
    for option in ("--module", "--quiet", "--verbose", "--log-json"):
        assert option in text
    assert "--out" in text or "--workdir" in text or command in ("bundle", "transcribe")


# Two print for people: tests/planner/test_plan.py, tests/verbs/test_transcribe.py
@pytest.mark.parametrize(
    "command", [name for name in options.COMMANDS if name not in ("plan", "transcribe")]
)
def test_a_command_calls_its_verb_as_the_verb_is_defined(command, capsys, monkeypatch, tmp_path):
    module = importlib.import_module(f"speechlm_jax.cli.{command}")
    names = ("training", "steps", command)
    (room,) = (getattr(module, name) for name in names if hasattr(module, name))
    does = {"bench": "bench_train"}.get(command, command)
    verb = mock.create_autospec(getattr(room, does), return_value={"done": 1})
    monkeypatch.setattr(room, does, verb)
    (tmp_path / "my_config.py").touch()
    monkeypatch.chdir(tmp_path)
    line = {"train": "speechlm train my_config.py a=1 --workdir w b=2"}.get(command)
    if line is None:
        line = _help(command, capsys).partition("\nexample:\n")[2].splitlines()[0].strip()
    arguments = cli.parse(shlex.split(line)[1:])
    assert arguments.run(arguments) == 0
    verb.assert_called_once()
    out = capsys.readouterr().out
    assert command == "train" or json.loads(out) == {"done": 1}
    if command == "train":
        assert verb.call_args.kwargs["overrides"] == ["a=1", "b=2"]


def test_what_help_shows_without_importing_it_is_what_is_there(setup_value):
    extra = {re.split(r"\W", one)[0] for one in setup_value("EXTRAS")["hf"]}
    assert extra == set(convert.EXTRA)
    assert bench.DTYPES == get_args(Dtype)
    assert bench.KERNELS == get_args(Kernel)
    assert set(presets._STACKS) == set(SIZES)


def test_what_the_launchers_add_to_a_command_parses():
    goldens = PACKAGE.parent / "tests/launch/goldens"

    def started(name):
        text = (goldens / name).read_text(encoding="utf-8")
        for line in text.splitlines():
            if "start.sh" in line:
                words = shlex.split(shlex.split(line)[-1])
                yield cli.parse(words[words.index("train") :])

    (spot,) = started("run_spot.txt")
    assert (spot.hosts, spot.disk_gb) == (0, None)  # JAX asks the machine
    assert [one.disk_gb for one in started("run_disk_gb.txt")] == [200, 50]
    pods = (goldens / "gke_submit.txt").read_text(encoding="utf-8")
    assert '- "--hosts"\n                    - "0"\n' in pods


def test_a_disk_limit_is_a_field_of_the_config_and_runs_lie_in_folders(monkeypatch, tmp_path):
    module = importlib.import_module("speechlm_jax.cli.train")
    verb = mock.create_autospec(module.training.train)
    monkeypatch.setattr(module.training, "train", verb)
    (tmp_path / "my_config.py").touch()
    monkeypatch.chdir(tmp_path)
    arguments = cli.parse(["train", "my_config.py", "seed=1", "--disk-gb", "0.5", "a=2"])
    assert arguments.run(arguments) == 0
    assert verb.call_args.kwargs["overrides"] == ["seed=1", "a=2", "data.disk_gb=0.5"]
    arguments = cli.parse(["train", "my_config.py", "--workdir", "gs://my-bucket/lm"])
    with pytest.raises(UserError, match=r"--workdir gs:/.*my-bucket/lm: must be a folder; mount"):
        arguments.check(arguments)
