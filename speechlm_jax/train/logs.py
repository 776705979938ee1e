"""Scalars of a run: metrics.jsonl, TensorBoard files (without TensorFlow), the console."""

import importlib
import json
import logging
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.record_writer import RecordWriter

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"

_log = logging.getLogger("speechlm.train")


class ScalarLog:
    """Log of a run's figures: metrics.jsonl and an event file, written on the first host only."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        after_step: int = 0,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        """Opens the logs of a run and drops lines of steps after `after_step`.

        A run that resumes from an older checkpoint repeats those steps.

        Args:
          config: config of the run, for Weights & Biases.

        Raises:
          UserError: `wandb_project` is given and Weights & Biases is not installed, or refuses.
        """
        self._metrics = self._events = self._wandb = None
        if jax.process_index() != 0:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._wandb = _open_wandb(wandb_project, workdir, config) if wandb_project else None
        drop_lines_after(workdir / METRICS, after_step)
        self._metrics = open(workdir / METRICS, "a", encoding="utf-8")
        self._events = _EventFile(workdir / TENSORBOARD, first_step=after_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Appends one line of figures for a step, without figures that are not finite."""
        if self._metrics is None or self._events is None:
            return
        finite = {name: float(x) for name, x in figures.items() if abs(float(x)) < float("inf")}
        self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
        self._metrics.flush()
        self._events.write(step, finite)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        """Closes the files."""
        if self._metrics is not None and self._events is not None:
            self._metrics.close()
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def _open_wandb(project: str, workdir: Path, config: Mapping[str, Any] | None) -> Any:
    """Opens a Weights & Biases run that resumes when the training does, named after the folder."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            "wandb_project: wandb is not installed; `pip install -e '.[wandb]'`"
        ) from None
    try:
        return wandb.init(
            project=project,
            id=_wandb_id(workdir / WANDB_ID),
            name=workdir.resolve().name,
            resume="allow",
            config=dict(config or {}),
            allow_val_change=True,  # some fields may change when a run resumes
            dir=str(workdir),
        )
    except wandb.Error as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"wandb_project={project}: {reason}") from None


def _wandb_id(path: Path) -> str:
    """Returns the id in `path`, or draws and saves one: other runs may have the folder's name."""
    known = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if not re.fullmatch(r"[0-9a-f]{16}", known):
        known = secrets.token_hex(8)
        artifacts.write_bytes(path, f"{known}\n".encode())
    return known


class _EventFile:
    """TensorBoard event file; `first_step` voids that step and later ones in older files."""

    def __init__(self, folder: Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(open(folder / name, "wb"))
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=x) for name, x in figures.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._writer.close()

    def _add(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the lines of metrics.jsonl after `step`, and lines cut short by a crash."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(f"{line}\n" for line in text.splitlines() if _figures(line)["step"] <= step)
    if kept != text:
        artifacts.write_bytes(path, kept.encode())


def logged_at(workdir: str | Path, step: int) -> set[str]:
    """Returns the names of the figures that a run has logged at a step; ignores broken lines."""
    path = Path(workdir) / METRICS
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name for line in map(_figures, lines) if line["step"] == step for name in line}


def _figures(line: str) -> dict[str, Any]:
    """Returns a line's figures and step; for a broken line, an infinite step."""
    try:
        figures = json.loads(line)
    except (ValueError, RecursionError):
        figures = None
    if isinstance(figures, dict) and isinstance(figures.get("step"), int):
        return figures
    return {"step": math.inf}


def console_line(
    name: str, step: int, total: int, figures: Mapping[str, float], *, seconds_left: float
) -> str:
    """Returns a console line with the progress, loss, rows per second and ETA of a run."""
    rates = f"{figures['rows_per_second']:.3g} rows/s"
    loss = f"loss {figures['loss']:.4f}" if "loss" in figures else "no finite loss"
    return f"{name} {step}/{total}  {loss}  {rates}  ETA {clock(seconds_left)}"


def clock(seconds: float) -> str:
    """Formats seconds as h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def info(message: str, *values: object) -> None:
    """Logs a console line, on the first host only."""
    if jax.process_index() == 0:
        _log.info(message, *values)
