"""Writes and reads a prepared mixture: its file, and the shard folders that the file names."""

import dataclasses
from collections import Counter
from pathlib import Path

from speechlm_jax import artifacts, bucket
from speechlm_jax import config as configs
from speechlm_jax.data.bucket_rows import RowFetcher
from speechlm_jax.data.plan import TaskRows
from speechlm_jax.data.rows import RowShards, read_row_manifest
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer, model_fingerprint
from speechlm_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task of a mixture: its SeqIO rate, and its shard folder by split, beside the file.

    Raises:
      UserError: a shard folder lies elsewhere, or the rate is below 0.
    """

    name: str
    rate: float
    splits: dict[str, str]

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "rate")
        for split, folder in self.splits.items():
            if not artifacts.is_inside(folder) or bucket.is_address(folder):
                raise UserError(
                    f"splits.{split}: {folder!r} does not lie beside the mixture's file; prepare "
                    "again, or copy it with the folders that it names"
                )


@dataclasses.dataclass(frozen=True)
class PreparedMixture:
    """A prepared mixture; training reads it and imports no task.

    Attributes:
      name: name of the SeqIO mixture or task.
      length: ids per row.
      vocab_fingerprint: fingerprint of the rows' vocabulary.
      tasks: its tasks, sorted by name.

    Raises:
      UserError: two tasks have one name, or `length` is below 1.
    """

    name: str
    length: int
    vocab_fingerprint: str
    tasks: tuple[PreparedTask, ...]

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "length")
        names = Counter(task.name for task in self.tasks)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"tasks: {twice[0]!r} stands there more than once; prepare again")

    @property
    def rates(self) -> dict[str, float]:
        """SeqIO rates by task, as `shares.rates_to_shares` takes them."""
        return {task.name: task.rate for task in self.tasks}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the mixture and its tasks' inputs (which the folders' names contain)."""
        return configs.fingerprint(self)


def mixture_path(out: str | Path, name: str) -> Path:
    """Returns the path where `prepare` writes the mixture `name` in the folder `out`."""
    return Path(out) / f"{name}.mixture.json"


def write_mixture(
    out: str | Path, mixture: PreparedMixture, text: TextTokenizer | None = None
) -> Path:
    """Writes the mixture's file, and the text vocabulary of its rows, beside its shard folders.

    Returns the mixture's path; `read_text` finds the text vocabulary.
    """
    path = mixture_path(out, mixture.name)
    if text is not None:
        text.save(Path(out) / _text_name(text.fingerprint))
    artifacts.write_json(path, configs.to_json(mixture))
    return path


def read_text(path: str | Path, vocab: Vocab) -> bytes | None:
    """Returns the text vocabulary of a mixture's rows that `write_mixture` saved; None without.

    Args:
      path: the mixture's file, local or in a bucket.
      vocab: vocabulary of the rows, whose text fingerprint names the file.
    """
    name = _text_name(vocab.text_fingerprint)
    place = bucket.join(bucket.parent(path), name)
    if not artifacts.is_inside(name):
        return None
    try:
        data = bucket.read_bytes(place) if bucket.is_address(place) else Path(place).read_bytes()
    except (bucket.NoSuchObject, OSError, ValueError):  # no such file, or no valid file name
        return None
    return data if model_fingerprint(data) == vocab.text_fingerprint else None


def _text_name(fingerprint: str) -> str:
    return f"text-{fingerprint}.vocab"


def read_mixture(path: str | Path) -> PreparedMixture:
    """Reads a file that `prepare` wrote; raises UserError if it is missing or not a mixture."""
    data = artifacts.read_json(path)
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: is not a prepared mixture; give the .mixture.json that `prepare` wrote"
        )
    try:
        return configs.from_json(PreparedMixture, data)
    except UserError as error:
        raise UserError(f"{path}: is not a prepared mixture ({error})") from None


def read_vocab(path: str | Path) -> Vocab:
    """Returns the vocabulary of a mixture's rows, from the manifest of one of its folders."""
    folders = [name for task in read_mixture(path).tasks for name in task.splits.values()]
    if not folders:
        raise UserError(f"{path}: has no rows")
    manifest = read_row_manifest(bucket.join(bucket.parent(path), folders[0]))
    return Vocab.from_json(manifest.extra["vocab"])


def open_shards(
    path: str | Path,
    *,
    split: str = "train",
    vocab: Vocab | None = None,
    fetcher: RowFetcher | None = None,
) -> dict[str, RowShards]:
    """Opens the rows of every task of a mixture that has this split; returns them by task name.

    Args:
      path: the mixture's file, local or in a bucket.
      split: split of the tasks.
      vocab: vocabulary that the rows must have.
      fetcher: fetcher of rows in a bucket; by default one for all tasks of this call.

    Raises:
      UserError: a folder is unfinished or damaged, or has another vocabulary.
    """
    found = [task for task in read_mixture(path).tasks if split in task.splits]
    fetcher = RowFetcher() if fetcher is None else fetcher
    folder = bucket.parent(path)
    return {
        task.name: RowShards(bucket.join(folder, task.splits[split]), vocab=vocab, fetcher=fetcher)
        for task in found
    }


def task_rows(shards: dict[str, RowShards]) -> tuple[TaskRows, ...]:
    """Returns the sizes and fingerprints of prepared tasks from which a plan is made."""
    return tuple(
        TaskRows(
            name=name,
            rows=len(rows),
            text_tokens=rows.counts["text_tokens"],
            speech_tokens=rows.counts["speech_tokens"],
            fingerprint=rows.fingerprint,
        )
        for name, rows in shards.items()
    )
