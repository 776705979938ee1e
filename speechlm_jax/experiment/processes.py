"""Training runs side by side, each in its own process and with its own progress bar."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.errors import EXIT_STOPPED, Stopped, UserError
from speechlm_jax.experiment.configs import Experiment, essence, essences

KIND = "training"
LOG = "log.txt"
POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment, the folder it is trained in, and fingerprints of the data it reads.

    Folders may move: `inputs` and the rest of the experiment identify a run.
    """

    name: str
    experiment: Experiment
    workdir: Path
    inputs: dict[str, str]

    @property
    def is_done(self) -> bool:
        """True if this very experiment was trained here, on this data, to its end."""
        if not (self.workdir / artifacts.MANIFEST).is_file():
            return False
        found = artifacts.read_manifest(self.workdir)
        theirs, mine = self._compared({"inputs": found.inputs, **found.config})
        return found.kind == KIND and theirs == mine

    def start(self) -> Path:
        """Prepares the folder and returns its config file; deletes another run's files."""
        path = self.workdir / "experiment.json"
        old = self.workdir.with_name(f"{self.workdir.name}.old")
        if path.is_file():
            theirs, mine = self._compared(artifacts.read_json(path))
            if theirs != mine:
                artifacts.say_stale(self.workdir, theirs, mine)
                # Renamed first: a kill during the deletion must not leave half of it in place.
                self.workdir.rename(old)
        shutil.rmtree(old, ignore_errors=True)
        artifacts.write_json(path, {"inputs": self.inputs, **essence(self.experiment)})
        config = self.workdir / "train.json"
        artifacts.write_json(config, configs.to_json(self.experiment))
        return config

    def finish(self) -> None:
        """Marks the run as done."""
        artifacts.write_manifest(
            self.workdir, KIND, inputs=self.inputs, config=essence(self.experiment)
        )

    def _compared(self, stored: dict[str, Any]) -> tuple[Any, Any]:
        """Returns stored inputs and essence, of any version, and this run's, to be compared."""
        config = {key: value for key, value in stored.items() if key != "inputs"}
        theirs, mine = essences(config, self.experiment)
        return {"inputs": stored.get("inputs"), **theirs}, {"inputs": self.inputs, **mine}


def train_all(runs: Sequence[Run], *, threads: int) -> None:
    """Trains the runs that are not done yet, all at once, each on `threads` cores.

    Small models leave cores idle when one run has them all: two runs on one core each finish in
    little more than half the time that they take one after the other.

    Raises:
      UserError: a run failed; the message quotes its last line and names its log.
      Stopped: SIGINT or SIGTERM came, and the runs saved.
    """
    waiting = [run for run in runs if not run.is_done]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with _forwarded_signals() as children:
        for number, run in enumerate(waiting):
            chosen = (
                [cores[(number * threads + i) % len(cores)] for i in range(threads)]
                if cores
                else []
            )
            children.append(_start(run, chosen if len(cores) > threads else []))
        codes = _watch(waiting, children)
    for run, code in zip(waiting, codes, strict=True):
        if code == EXIT_STOPPED:
            raise Stopped(f"{run.name} is saved in {run.workdir}")
        if code != 0:
            raise UserError(f"training {run.name} failed{_last_line(run)}; see {run.workdir / LOG}")
        run.finish()


def _start(run: Run, cores: list[int]) -> subprocess.Popen[bytes]:
    config = run.start()
    command = [sys.executable, "-m", "speechlm_jax.experiment.child", str(config), str(run.workdir)]
    environment = dict(os.environ)
    if len(cores) == 1:
        # One thread a process: Eigen's pool would only add overhead on a single core.
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    with open(run.workdir / LOG, "ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
    if cores:
        os.sched_setaffinity(child.pid, cores)
    return child


class _forwarded_signals:
    """Context that passes SIGINT and SIGTERM to children, which save; a second SIGINT ends them."""

    def __enter__(self) -> list[subprocess.Popen[bytes]]:
        self.children: list[subprocess.Popen[bytes]] = []
        self.previous = {
            number: signal.signal(number, self._forward)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self.children

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()

    def _forward(self, number: int, frame: object) -> None:
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)


def _watch(runs: Sequence[Run], children: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Draws progress until every child has ended; returns their exit codes."""
    bars = [
        tqdm(total=run.experiment.train.total_steps, desc=run.name, unit="step", position=i)
        for i, run in enumerate(runs)
    ]
    stopping = False
    try:
        while any(child.poll() is None for child in children):
            time.sleep(POLL_SECONDS)
            for run, bar in zip(runs, bars, strict=True):
                _advance(bar, run.workdir / "metrics.jsonl")
            # If one fails, the others save and stop: the caller cannot go on without it.
            if not stopping and any(child.poll() not in (None, 0) for child in children):
                stopping = True
                for child in children:
                    if child.poll() is None:
                        child.send_signal(signal.SIGTERM)
    finally:
        for bar in bars:
            bar.close()
    return [child.wait() for child in children]


def _advance(bar: tqdm, metrics: Path) -> None:
    """Moves a bar to the last logged step."""
    if not metrics.is_file():
        return
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = [
            line for line in file.read().decode(errors="ignore").splitlines() if line.endswith("}")
        ]
    steps = [part.split(",")[0] for line in lines[-1:] for part in line.split('"step":')[1:2]]
    if steps and int(float(steps[0].strip(" }"))) > bar.n:
        step = int(float(steps[0].strip(" }")))
        if bar.n == 0:
            bar.initial = step
        bar.update(step - bar.n)


def _last_line(run: Run) -> str:
    lines = (run.workdir / LOG).read_text(errors="replace").strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""
