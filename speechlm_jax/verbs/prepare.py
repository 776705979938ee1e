"""A registered mixture -> packed shards in a run's vocabulary. Imports TensorFlow."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_vocab
from speechlm_jax.data.mixture import read_mixture
from speechlm_jax.data.prepare import PrepareConfig
from speechlm_jax.data.prepare import prepare as prepare_mixture
from speechlm_jax.data.sources import SPLITS
from speechlm_jax.errors import UserError
from speechlm_jax.shipped import RUN_VARIABLE

COUNTS = (
    "rows", "documents", "text_tokens", "speech_tokens", "unknown_tokens", "dropped_documents",
    "empty_documents", "other_split_documents",
)  # fmt: skip


def prepare(
    mixture: str,
    *,
    run: str | Path,
    out: str | Path,
    length: int = 512,
    seed: int = 0,
    allow_unknown: bool = False,
) -> dict[str, Any]:
    """Prepares a mixture (or one task) that an imported module has registered.

    Args:
      mixture: name of the mixture or task.
      run: a bundle with the vocabulary of the rows: a run, a converted model, or a folder from
        `speechlm vocab`.
      out: folder of the shards and of the mixture's file, which training reads.
      length: number of ids in a row.
      seed: seed of the order of documents.
      allow_unknown: true to allow a task in which more than a fifth of the text is words without
        an id.

    Raises:
      UserError: the name is unknown (the message suggests the nearest), or the data is bad.
    """
    if length < 2:
        raise UserError(f"--length {length}: must be 2 or more")
    vocab, text = open_vocab(run)
    config = PrepareConfig(length=length, seed=seed)
    with _exported(run):
        path = prepare_mixture(
            mixture, vocab=vocab, tokenizer=text, out=out, config=config,
            allow_unknown=allow_unknown,
        )  # fmt: skip
    made = read_mixture(path)
    return {
        "mixture": str(path),
        "length": made.length,
        "vocabulary": made.vocab_fingerprint,
        "tasks": {
            task.name: {
                "rate": task.rate,
                **{split: _counts(Path(out), task.splits.get(split)) for split in SPLITS},
            }
            for task in made.tasks
        },
    }


@contextlib.contextmanager
def _exported(run: str | Path) -> Iterator[None]:
    """Sets SPEECHLM_RUN to the run during the block, so that the shipped tasks find its data."""
    before = os.environ.get(RUN_VARIABLE)
    os.environ[RUN_VARIABLE] = str(Path(run).resolve())
    try:
        yield
    finally:
        del os.environ[RUN_VARIABLE]
        if before is not None:
            os.environ[RUN_VARIABLE] = before


def _counts(out: Path, folder: str | None) -> dict[str, int]:
    """Returns the counts of a split; zeros if it has no rows."""
    counts = {} if folder is None else artifacts.read_manifest(out / folder).counts
    return {name: counts.get(name, 0) for name in COUNTS}
