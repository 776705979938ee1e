"""Runs side by side: what is done stays, what another config left goes, failures are named."""

import dataclasses
import io
import subprocess
import sys

import pytest
from tqdm import tqdm

from speechlm_jax.errors import EXIT_STOPPED, Stopped, UserError
from speechlm_jax.experiment import processes
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.experiment.processes import Run, train_all
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.train.loop import TrainConfig

EXPERIMENT = LanguageModelExperiment(
    RowsData("rows.mixture.json"),
    LanguageModelConfig(8, TransformerConfig(1, 8, 1, 1, 8, 8)),
    TrainConfig(total_steps=40),
)


@pytest.fixture
def run(tmp_path):
    return Run("lm", EXPERIMENT, tmp_path / "lm", {"mixture": "m"})


def test_a_run_is_done_only_as_what_it_is(run):
    assert not run.is_done
    config = run.start()
    assert config.is_file() and not run.is_done
    run.finish()
    assert run.is_done
    train = dataclasses.replace(EXPERIMENT.train, seed=1)
    changed = dataclasses.replace(EXPERIMENT, train=train)
    assert not dataclasses.replace(run, experiment=changed).is_done
    assert not dataclasses.replace(run, inputs={"mixture": "n"}).is_done


@pytest.mark.parametrize("inputs, stays", [({"mixture": "m"}, True), ({"mixture": "n"}, False)])
def test_a_start_keeps_its_own_checkpoints_and_wipes_those_of_other_data(run, inputs, stays):
    run.start()
    checkpoint = run.workdir / "checkpoints" / "20"
    checkpoint.mkdir(parents=True)
    dataclasses.replace(run, inputs=inputs).start()
    assert checkpoint.exists() == stays


def test_a_training_that_is_done_anew_is_said_with_what_differs(run, caplog):
    run.start()
    run.finish()
    train = dataclasses.replace(EXPERIMENT.train, seed=1)
    changed = dataclasses.replace(EXPERIMENT, train=train)
    with caplog.at_level("INFO", "speechlm.stages"):
        run.start()
        assert not caplog.messages
        dataclasses.replace(run, experiment=changed, inputs={"mixture": "n"}).start()
    assert caplog.messages == [
        f"{run.workdir}: is made anew; it had inputs.mixture='m', this run has 'n'; "
        "train.seed=0, this run has 1"
    ]


def test_a_run_that_moved_is_the_same_run(run, tmp_path):
    run.start()
    run.finish()
    moved = dataclasses.replace(
        EXPERIMENT,
        data=RowsData("/elsewhere/rows.mixture.json"),
        train=dataclasses.replace(EXPERIMENT.train, init_from="/elsewhere/lm"),
    )
    assert dataclasses.replace(run, experiment=moved).is_done


def test_a_bar_follows_the_last_whole_line(tmp_path):
    bar, metrics = tqdm(total=60, file=io.StringIO()), tmp_path / "metrics.jsonl"
    processes._advance(bar, metrics)
    assert bar.n == 0
    long = '"x": 1.5, ' * 600
    metrics.write_text('{"step": 20, "loss": 1.0}\n{"step": 40, "lo')
    processes._advance(bar, metrics)
    assert bar.n == 20
    metrics.write_text(f'{{{long}"y": 2}}\n{{"loss": 2.0, "step": 40}}\n')
    processes._advance(bar, metrics)
    assert bar.n == 40 and bar.initial == 20
    metrics.write_text('{"step": 30}\n')
    processes._advance(bar, metrics)
    assert bar.n == 40, "it never goes back"
    bar.close()


@pytest.fixture
def scripts(monkeypatch):
    """scripts[name] = Python source that stands for a run's training."""
    made, started = {}, []

    def start(run, cores):
        run.start()
        started.append(run.name)
        with open(run.workdir / processes.LOG, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", made[run.name]],
                stderr=log,
                stdin=subprocess.PIPE,
            )

    monkeypatch.setattr(processes, "_start", start)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)
    made["started"] = started
    return made


FAILS = "import sys; print('out of paper', file=sys.stderr); sys.exit(1)"
WAITS = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({EXIT_STOPPED}))
time.sleep(60)
"""


@pytest.fixture
def pair(tmp_path):
    return [Run(name, EXPERIMENT, tmp_path / name, {}) for name in ("first", "second")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_ends_well_is_not_run_again(pair, scripts):
    scripts["first"] = scripts["second"] = "pass"
    train_all(pair[:1], threads=1)
    train_all(pair, threads=1)
    assert scripts["started"] == ["first", "second"]
    assert all(run.is_done for run in pair)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failure_is_named_and_its_neighbour_saves(pair, scripts):
    scripts["first"], scripts["second"] = FAILS, WAITS
    with pytest.raises(UserError, match=r"training first failed \(out of paper\); see .*log.txt"):
        train_all(pair, threads=1)
    assert not any(run.is_done for run in pair)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stopped_run_is_saved(pair, scripts):
    scripts["first"] = f"raise SystemExit({EXIT_STOPPED})"
    with pytest.raises(Stopped, match="first is saved"):
        train_all(pair[:1], threads=1)
