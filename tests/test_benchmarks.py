"""The benchmark of GPUs, as far as a machine without one can run it."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from speechlm_jax.nn import fused_loss

GPU = Path(__file__).parents[1] / "benchmarks/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(GPU.parent), *sys.path])  # as when it is run
        return runpy.run_path(str(GPU), run_name="gpu")


@pytest.fixture
def tiny(gpu):
    return {case["kind"]: case for case in gpu["cases"](tiny=True)}


def printed(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_kernels_are_near_the_reference_and_a_missing_one_is_a_line(gpu, tiny):
    lines = list(gpu["run_one"](tiny["parity"]))
    failed = [line for line in lines if "failed" in line]
    assert {line["kernel"] for line in failed} == {"cudnn"}
    assert all("needs an NVIDIA GPU" in line["failed"] for line in failed)
    for line in lines:
        assert "failed" in line or max(line["relative_error"].values()) < 0.01


def test_a_step_is_measured_with_the_chunk_that_was_asked_for(gpu, tiny, monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK_POSITIONS", fused_loss.CHUNK_POSITIONS)
    (line,) = gpu["run_one"]({**tiny["step"], "chunk": 64})
    assert line["tokens"] == 256 and line["tokens_per_second"] > 0 and line["temporary_bytes"] > 0
    assert set(fused_loss.CHUNK_POSITIONS.values()) == {64}


def test_what_fails_and_what_comes_too_late_are_lines(gpu, capsys):
    (line,) = gpu["run_one"]({"kind": "step", "size": "tiny"})
    assert line == {"kind": "step", "size": "tiny", "failed": "KeyError: 'chunk'"}
    assert gpu["main"](["--seconds", "0"]) == 1
    *lines, last = printed(capsys)
    assert len(lines) == len(list(gpu["cases"](tiny=False)))
    assert all(line["skipped"] == "no time left" for line in lines) and not any(last.values())


def test_a_case_is_a_process_of_its_own(gpu, capsys):
    assert gpu["main"](["--tiny", "--only", "step"]) == 0
    line, last = printed(capsys)
    assert last["best"] == line and line["device"] == "cpu" and last["best_decode"] is None
