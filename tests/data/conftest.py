"""Rows that compress little, and mixtures of them."""

import itertools

import numpy as np
import pytest

from speechlm_jax.data import mixture
from speechlm_jax.data.packing import Row
from speechlm_jax.data.rows import RowFile, write_row_manifest, write_rows
from speechlm_jax.vocab import Vocab

VOCAB = Vocab(50, 16, 12.5, "text", "tokenizer")


@pytest.fixture(scope="session")
def write_task():
    """write_task(folder, [rows of each file], length, seed): random rows, which compress little."""

    def write(folder, counts, *, length=256, seed=0, task="t"):
        random = np.random.default_rng(seed)
        files, totals = [], {"rows": 0, "text_tokens": 0, "speech_tokens": 0}
        for number, count in enumerate(counts):
            rows = [
                Row(
                    random.integers(0, VOCAB.size, length).astype(np.int32),
                    np.ones(length, np.int32),
                    random.integers(0, length, length).astype(np.int32),
                    random.random(length) < 0.5,
                )
                for _ in range(count)
            ]
            path = folder / f"rows-{number}.arrayrecord"
            made = write_rows(path, rows, vocab=VOCAB, length=length)
            files.append(RowFile(path.name, count, path.stat().st_size))
            totals = {name: totals[name] + getattr(made, name) for name in totals}
        write_row_manifest(
            folder, files, task=task, split="train", vocab=VOCAB, length=length,
            counts=totals, inputs={}, config={}, seed=seed,
        )  # fmt: skip

    return write


@pytest.fixture(scope="session")
def write_mixture(write_task):
    """write_mixture(out, {task: [rows of each file]}): tasks with a train and a held-out split."""

    def write(out, tasks, *, length=256):
        seeds, prepared = itertools.count(), []
        for name, counts in tasks.items():
            write_task(out / name / "train", counts, length=length, seed=next(seeds), task=name)
            write_task(out / name / "validation", [7], length=length, seed=next(seeds), task=name)
            splits = {split: f"{name}/{split}" for split in ("train", "validation")}
            prepared.append(mixture.PreparedTask(name, 1.0, splits))
        made = mixture.PreparedMixture("mix", length, VOCAB.fingerprint, tuple(prepared))
        return mixture.write_mixture(out, made)

    return write
