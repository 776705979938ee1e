"""Every command that a help or a document shows: it parses, and its overrides apply to its config.

README's commands on a run are given in verbs/test_readme.py, and, slowly, at the end of this file.
"""

import functools
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechlm_jax import config as configs
from speechlm_jax import shipped
from speechlm_jax.cli import main as cli
from speechlm_jax.cli import options
from speechlm_jax.experiment.configs import load_experiment
from speechlm_jax.lm.bench import BenchConfig

ROOT = Path(shipped.__file__).parents[1]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("*/*.md"),
        *ROOT.glob("docs/*/*.md"),
        *ROOT.glob("configs/*.py"),
    )
    if path.name != "log.md"  # what was run one day
]
# What stands for something of the reader's own, or of the shell's.
PLACEHOLDERS = {
    "my_config.py": "configs/lm_150m.py",
    "CONFIG": "configs/lm_150m.py",
    "FILE": "my_text.txt",
    "$seed": "1",
    "$I": "1",
}
COMMAND = re.compile(r"(?:^|[\s'])speechlm ([a-z].*)")


def printed(text: str) -> Iterator[str]:
    """The commands in a document's blocks of code, without `speechlm`."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        found = COMMAND.search(line)
        is_code = line.startswith("    ") or re.match(r"(Command:|  One training.*:) ", line)
        if found and is_code:
            yield re.split(r"; done|'$|  \(", found[1].partition(" # ")[0])[0]


def mentioned(text: str) -> Iterator[str]:
    """The commands that a sentence names, without `speechlm`."""
    for words in re.findall(r"`(?:launch/run -- )?speechlm ([a-z][^`]*)`", text):
        yield " ".join(words.split())


def examples() -> Iterator[tuple[str, str]]:
    for name in DOCUMENTS:
        for line in printed((ROOT / name).read_text(encoding="utf-8")):
            yield name, line
    for command in options.COMMANDS:
        module = importlib.import_module(f"speechlm_jax.cli.{command}")
        for line in printed("\n".join(f"    {line}" for line in module.EXAMPLE.splitlines())):
            yield f"{command} --help", line


@functools.lru_cache
def config_of(name: str):
    return load_experiment(shipped.find(name))


def test_examples_are_found_everywhere():
    places = {place for place, _ in examples()}
    wanted = {"README.md", "docs/pretraining.md", "tasks/README.md", "launch/README.md"}
    assert wanted <= places and {f"{command} --help" for command in options.COMMANDS} <= places
    assert {name for name in DOCUMENTS if name.startswith("configs/")} <= places


@pytest.mark.parametrize(("place", "line"), [*examples()])
def test_an_example_parses_and_its_overrides_apply(place, line):
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    arguments = cli.parse(words)
    if words[0] in ("train", "plan"):
        assert configs.override(config_of(arguments.config), arguments.overrides)
    if words[0] == "bench":
        assert configs.override(BenchConfig(), arguments.overrides)
        assert arguments.model in ("1.5B", "tiny") or config_of(arguments.model)


@functools.lru_cache
def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "speechlm_jax.cli.main", command, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_sentence_names_commands_and_options_that_exist():
    named = {
        (name, line)
        for name in DOCUMENTS
        for line in mentioned((ROOT / name).read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    wrong = []
    for name, line in sorted(named):
        command = line.split()[0]
        given = re.findall(r"(?<!\S)--[a-z][a-z-]*", line)
        if command not in options.COMMANDS or not all(one in help_of(command) for one in given):
            wrong.append(f"{name}: {line}")
    assert not wrong


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> Path:
    """Where README's commands are given: a folder with a micro run in runs/quickstart."""
    folder = tmp_path_factory.mktemp("readme")
    words = ["quickstart", "--size", "micro", "--out", "runs/quickstart"]
    subprocess.run([sys.executable, "-m", "speechlm_jax.cli.main", *words], cwd=folder, check=True)
    return folder


@pytest.mark.slow
def test_readme_try_it_on_a_micro_run(micro):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = list(printed(readme.partition("## Try it\n")[2].partition("\n## ")[0]))
    assert {line.split()[0] for line in lines} == {"chat", "speak", "evaluate"}
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", "speechlm_jax.cli.main", *shlex.split(line)],
            cwd=micro, capture_output=True, text=True,
        )  # fmt: skip
        # A model that has learnt nothing may give no speech; it says so in one line.
        assert done.returncode == 0 or "gave no speech" in done.stderr, (line, done.stderr)
        if "anna.wav" in line and done.returncode:
            shutil.copy(micro / "runs/quickstart/audio/question.wav", micro / "runs/anna.wav")
