"""Help, and what is wrong with a path or an option, are told before anything heavy is imported."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from speechlm_jax.cli import main as cli
from speechlm_jax.cli import options
from speechlm_jax.cli.later import Later

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("jax", "flax", "optax", "orbax", "scipy", "librosa", "tensorflow", "seqio", "pyarrow")
HELP_SECONDS, REFUSAL_SECONDS = 2.0, 3.0  # of CPU: of a slow machine; 0.3 to 0.9 on two cores
CODE = """
import atexit, os, sys
found = lambda: sys.stderr.write(f"\\nheavy: {sorted(set(%r) & set(sys.modules))}\\n")
atexit.register(found)
from speechlm_jax.cli import main
sys.exit(main.main(sys.argv[1:]))
"""

LONG = "x" * 5000
MISSING = {
    "quickstart": [["--world", "/nope"], ["--speech", "/nope", "--text", "/nope"]],
    "convert": [["/nope"]],
    "transcribe": [["/nope.wav"], ["docs"], ["README.md", "--run", "/nope"]],
    "train": [["/nope.py"], ["configs/lm_150m.py", "--workdir", "gs://a/b"],
              ["configs/lm_150m.py", "--workdir", "README.md"],
              ["configs/lm_150m.py", "--coordinator", "x"]],
    "bench": [["train", "/nope.py"], ["train", "7B"]],
    "plan": [["/nope.py", "--topology", "v5p:4x4x4"],
             ["configs/lm_150m.py", "--topology", "v9:4x4x4"],
             ["configs/lm_150m.py", "--topology", ""], ["configs/lm_150m.py", "--accelerator", ""]],
    "prepare": [["a", "--run", "/nope"], ["a", "--length", "1"], ["a", "--module", "/nope.py"]],
    "vocab": [["/nope.txt"], ["README.md", "--run", "/nope"], ["docs"]],
    "bundle": [["show", "/nope"], ["show", "docs"], ["make", "/nope"], 
               ["show", "docs", "--lm", "a"],
               ["make", "a", "--lm", "/nope"], ["make", "a", "--lm", "docs"], ["do", "docs"]],
    "tokenize": [["/nope.wav"], [LONG], ["configs"]],
    "synthesize": [["it is", "--run", "/nope"], ["it is", "--temperature", "nan"]],
    "interleave": [["/nope"], ["docs"], ["README.md", "--run", "/nope"]],
    "evaluate": [["docs"], ["/nope"], ["docs", "--tensor", "0"]],
    "speak": [["hello", "--run", "/nope"], ["/nope.jsonl"], ["hello", "--out", "a.mp3"],
              [""]],
    "chat": [["/nope.wav"], ["docs"]],
}  # fmt: skip


def started(arguments: list[str]) -> tuple[subprocess.CompletedProcess, float]:
    """Runs a command in a process of its own, and gives the CPU seconds that it took too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", CODE % (HEAVY,), *arguments],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))


@pytest.mark.parametrize("command", options.COMMANDS)
def test_help_imports_nothing_heavy(command):
    done, seconds = started([command, "--help"])
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    assert "heavy: []" in done.stderr
    assert seconds < HELP_SECONDS


@pytest.mark.parametrize("command", options.COMMANDS)
def test_what_is_not_there_is_told_before_anything_heavy_is_imported(command, capsys):
    for arguments in MISSING[command][:1]:
        done, seconds = started([command, *arguments])
        assert done.returncode == 2 and "heavy: []" in done.stderr, done.stderr
        assert seconds < REFUSAL_SECONDS


@pytest.mark.parametrize(
    ("command", "arguments"), [(name, given) for name in MISSING for given in MISSING[name]]
)
def test_what_is_not_there_is_one_line(command, arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Later, "__getattr__", _not_now)
    assert cli.main([command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("speechlm: error: ") and err.count("\n") == 1


def _not_now(self, attribute):
    raise AssertionError(f"{self._name}.{attribute}: imported before what was given was looked at")
