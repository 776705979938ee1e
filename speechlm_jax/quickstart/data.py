"""Rows of the quickstart: vocabularies, plain documents, sources of the tasks, prepared mixtures."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.errors import EXIT_OK, UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

TASKS = "tasks/quickstart.py"


def make_vocab(text: TextTokenizer, codes: Path, *, voices: Sequence[str] = ()) -> Vocab:
    """The vocabulary that joins a text vocabulary and the codes of a folder."""
    extra = artifacts.read_manifest(codes).extra
    return Vocab(
        text_size=text.size,
        codebook_size=extra["codebook_size"],
        frame_rate_hz=extra["frame_rate_hz"],
        text_fingerprint=text.fingerprint,
        tokenizer_fingerprint=extra["tokenizer"],
        voices=tuple(voices),
    )


def write_rows(
    folder: Path, kind: str, name: str, rows: Iterable[dict[str, Any]], *, inputs: dict[str, str],
    config: Any, extra: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes rows as a finished stage folder; one of the same inputs and config is kept."""
    plain = configs.to_json({"config": config})
    if artifacts.is_current(folder, kind, inputs=inputs, config=plain):
        return
    rows = list(rows)
    artifacts.write_jsonl(folder / name, rows)
    artifacts.write_manifest(
        folder,
        kind,
        inputs=inputs,
        config=plain,
        counts={"rows": len(rows)},
        files=[name],
        extra=extra,
    )


def add_sources(path: Path, sources: dict[str, list[str]]) -> None:
    """Adds entries to the run's sources.json, which tells the tasks where the data lies."""
    known = artifacts.read_json(path) if path.is_file() else {}
    artifacts.write_json(path, {**known, **sources})


def prepare(
    name: str, *, run: Path, out: Path, vocab: Vocab, text_model: Path, length: int, seed: int
) -> Path:
    """Prepares a mixture in a process of its own, so that TensorFlow's memory is given back."""
    vocab_path = out / f"{name}.vocab.json"
    artifacts.write_json(vocab_path, vocab.to_json())
    command = [
        sys.executable, "-m", "speechlm_jax.quickstart.prepare_child", name, str(vocab_path),
        str(text_model), str(out), str(length), str(seed), str(shipped.find(TASKS)),
    ]  # fmt: skip
    environment = {**os.environ, "SPEECHLM_RUN": str(run.resolve()), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != EXIT_OK:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"preparing {name} failed: {lines[-1]}")
    return out / f"{name}.mixture.json"
