"""The quickstart as a command: refusals, and what a second run and `kill -9` leave as it is."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speechlm_jax import artifacts
from speechlm_jax.errors import EXIT_OK, UserError
from speechlm_jax.folder_lock import FolderLock
from speechlm_jax.quickstart.steps import STEPS, quickstart

ROOT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 8.0  # from the start of a step to its kill


def test_speech_and_text_belong_together(tmp_path):
    with pytest.raises(UserError, match="both or neither"):
        quickstart(tmp_path / "run", size="micro", speech=tmp_path)


def test_two_processes_in_one_folder_are_refused(tmp_path):
    with FolderLock(tmp_path), pytest.raises(UserError, match="this folder is in use"):
        quickstart(tmp_path, size="micro")


def start(out, **options):
    """The command in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "speechlm_jax.cli.main", "quickstart"]
    return subprocess.Popen(
        [*command, "--size", "micro", "--out", str(out)], env=environment, cwd=out.parent,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, **options,
    )  # fmt: skip


def finish(out):
    process = start(out)
    _, errors = process.communicate()
    assert process.returncode == EXIT_OK, errors.decode()[-2000:]


def figures(out):
    return artifacts.read_json(out / "report.json")["figures"]


def kept(out):
    """What every file of a run holds, and when those of its costly steps were written."""
    rewritten = {"timing", "report.json", "report.html"}
    cheap = {"world.json", "text.model", "bundle.json", "sources.json", "prepared"}
    files = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {
        str(name): (
            artifacts.sha256_file(path),
            None if name.parts[0] in cheap else path.stat().st_mtime_ns,
        )
        for name, path in files.items()
        if name.parts[0] not in rewritten
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(out)
    return out


@pytest.mark.slow
def test_a_second_run_makes_nothing_anew(finished):
    files, before = kept(finished), figures(finished)
    assert len(before) > 20 and len(files) > 50
    finish(finished)
    assert kept(finished) == files
    assert figures(finished) == before


@pytest.mark.slow
def test_kill_9_in_each_step_costs_no_figure(finished, tmp_path):
    out, moments = tmp_path / "run", random.Random(0)
    for number in range(1, len(STEPS) + 1):
        process = start(out, text=True)
        for line in process.stderr:
            if f"step {number} of {len(STEPS)}" in line:
                break
        else:
            pytest.fail(f"step {number} was never begun")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moments.uniform(0.0, LONGEST_SECONDS))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its trainings end by themselves
        process.communicate()
    finish(out)
    assert figures(out) == figures(finished)
    timing = artifacts.read_json(out / "report.json")["timing"]
    assert {name for name, _ in STEPS} <= timing["steps"].keys()
