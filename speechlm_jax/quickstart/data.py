"""Data of the quickstart: vocabularies, documents, sources of the tasks, prepared mixtures."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts, shipped
from speechlm_jax.errors import EXIT_OK, UserError
from speechlm_jax.vocab import Vocab

TASKS = "tasks/quickstart.py"
TEXT_TO_TOKEN = "q_text_to_token"  # the task that the text-to-token model learns


def vocab_path(prepared: Path, name: str) -> Path:
    """Returns the path where `prepare` writes the vocabulary of a mixture."""
    return prepared / f"{name}.vocab.json"


def write_rows(
    folder: Path, kind: str, name: str, rows: Iterable[dict[str, Any]], *, inputs: dict[str, str],
    config: Any, extra: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes rows as a finished stage folder; keeps one made from the same inputs and config."""
    made_with = {"config": config}
    if artifacts.is_current(folder, kind, inputs=inputs, config=made_with):
        return
    rows = list(rows)
    artifacts.write_jsonl(folder / name, rows)
    artifacts.write_manifest(
        folder,
        kind,
        inputs=inputs,
        config=made_with,
        counts={"rows": len(rows)},
        files=[name],
        extra=extra,
    )


def add_sources(path: Path, sources: dict[str, list[str]]) -> None:
    """Adds entries to the run's sources.json, which lists the places of the data for the tasks."""
    known = artifacts.read_json(path) if path.is_file() else {}
    artifacts.write_json(path, {**known, **sources})


def prepare(
    names: Sequence[str],
    kinds: Sequence[str],
    *,
    run: Path,
    out: Path,
    vocab: Vocab,
    text_model: Path,
    length: int,
    seed: int,
) -> list[Path]:
    """Prepares mixtures from the run's sources of these kinds, unless that is done already.

    A separate process prepares them, so that TensorFlow starts only when it is needed and its
    memory is freed.

    Returns the mixture files.

    Raises:
      UserError: preparing failed; the message is the last line that the process wrote.
    """
    mixtures = [out / f"{name}.mixture.json" for name in names]
    mark = out / "done" / "+".join(names)
    inputs = {"tasks": artifacts.sha256_file(shipped.find(TASKS)), "vocabulary": vocab.fingerprint}
    inputs |= {place: _identity(run / place) for place in _places(run, kinds)}
    config = {"length": length}
    if all(mixture.is_file() for mixture in mixtures) and artifacts.is_current(
        mark, "prepared", inputs=inputs, config=config, seed=seed
    ):
        return mixtures
    for name in names:
        artifacts.write_json(vocab_path(out, name), vocab.to_json())
    command = [
        sys.executable, "-m", "speechlm_jax.quickstart.prepare_child", ",".join(names),
        str(vocab_path(out, names[0])), str(text_model), str(out), str(length), str(seed),
        str(shipped.find(TASKS)),
    ]  # fmt: skip
    environment = {**os.environ, "SPEECHLM_RUN": str(run.resolve()), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != EXIT_OK:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"preparing {', '.join(names)} failed: {lines[-1]}")
    artifacts.write_manifest(mark, "prepared", inputs=inputs, config=config, seed=seed)
    return mixtures


def _places(run: Path, kinds: Sequence[str]) -> list[str]:
    sources = artifacts.read_json(run / "sources.json")
    return sorted({place for kind in kinds for place in sources[kind]})


def _identity(place: Path) -> str:
    if place.is_dir():
        return artifacts.read_manifest(place).fingerprint
    return artifacts.sha256_file(place)
