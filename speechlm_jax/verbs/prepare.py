"""A registered mixture -> packed shards in a run's vocabulary. Imports TensorFlow."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.data.mixture import read_mixture
from speechlm_jax.data.prepare import PrepareConfig
from speechlm_jax.data.prepare import prepare as prepare_mixture
from speechlm_jax.errors import UserError
from speechlm_jax.verbs.opening import open_vocab

RUN_VARIABLE = "SPEECHLM_RUN"
COUNTS = ("rows", "documents", "text_tokens", "speech_tokens", "dropped_documents")


def prepare(
    mixture: str, *, run: str | Path, out: str | Path, length: int = 512, seed: int = 0
) -> dict[str, Any]:
    """Prepares a mixture (or one task) that imported modules have registered.

    Args:
      mixture: its name.
      run: a quickstart run's folder, or a converted model; its vocabulary is that of the rows.
      out: folder of the shards and of the mixture's file, which training reads.
      length: ids in a row.
      seed: of the order of documents.

    Raises:
      UserError: an unknown name (the nearest is given), or bad data.
    """
    if length < 2:
        raise UserError(f"--length {length}: must be 2 or more")
    vocab, text = open_vocab(run)
    config = PrepareConfig(length=length, seed=seed)
    with _exported(run):
        path = prepare_mixture(mixture, vocab=vocab, tokenizer=text, out=out, config=config)
    made = read_mixture(path)
    return {
        "mixture": str(path),
        "length": made.length,
        "vocabulary": made.vocab_fingerprint,
        "tasks": {
            task.name: {
                "rate": task.rate,
                **{split: _counts(Path(out) / folder) for split, folder in task.splits.items()},
            }
            for task in made.tasks
        },
    }


@contextlib.contextmanager
def _exported(run: str | Path) -> Iterator[None]:
    """Meanwhile SPEECHLM_RUN names the run, by which tasks/quickstart.py finds its data."""
    before = os.environ.get(RUN_VARIABLE)
    os.environ[RUN_VARIABLE] = str(Path(run).resolve())
    try:
        yield
    finally:
        del os.environ[RUN_VARIABLE]
        if before is not None:
            os.environ[RUN_VARIABLE] = before


def _counts(folder: Path) -> dict[str, int]:
    counts = artifacts.read_manifest(folder).counts
    return {name: counts[name] for name in COUNTS}
