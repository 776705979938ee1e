"""Tasks -> packed rows on disk, once per task: run its preprocessors, pack, write, manifest last.

Everything is a function of (task, config, shard): a shard that is done is skipped, shards may be
made in any order, and their rows do not depend on how many are made at once.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.data import formats, mixture, rows
from speechlm_jax.data import tasks as data_tasks
from speechlm_jax.data.formats import Example, example_to_document
from speechlm_jax.data.packing import Packer, Row
from speechlm_jax.data.sources import SPLITS, code_identity
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

_TFDS_ABSENT = "TFDS data set {} is not on disk; build it with TFDS first, and give its data_dir"


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How tasks are prepared.

    Attributes:
      length: ids in a row.
      seed: of the order of documents before packing.
      num_shards: files of each task and split, and independent pieces of work.
      shuffle_documents: documents are shuffled within runs of this many, so that a row is not
        filled from one corner of the data; 1 keeps the order.
      open_rows: window of the packer.
    """

    length: int = 2048
    seed: int = 0
    num_shards: int = 1
    shuffle_documents: int = 10_000
    open_rows: int = 64

    def __post_init__(self) -> None:
        configs.at_least(self, 2, "length")
        configs.at_least(self, 1, "num_shards", "shuffle_documents", "open_rows")
        configs.at_least(self, 0, "seed", most=2**63 - 1)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One file of rows to make: a piece of work that depends on nothing else."""

    task: str
    split: str
    shard: int
    folder: Path

    def path(self, config: PrepareConfig) -> Path:
        """The file."""
        return self.folder / f"rows-{self.shard:05d}-of-{config.num_shards:05d}.arrayrecord"


def prepare(
    name: str,
    *,
    modules: Sequence[str] = (),
    vocab: Vocab,
    tokenizer: TextTokenizer,
    out: str | Path,
    config: PrepareConfig,
    quiet: bool = False,
) -> Path:
    """Prepares a mixture (or one task) and returns its file, which training reads.

    A task goes to `out/<task>-<fingerprint>/<split>/`. The fingerprint names its data, code,
    vocabulary and config, so what has not changed is not prepared again.

    Args:
      name: a registered mixture or task.
      modules: what registers it, if it is not imported yet: dotted modules or .py files.
      vocab: ids of the rows.
      tokenizer: text to ids.
      out: folder of all prepared tasks.
      config: row length, seed, shards.
      quiet: no progress bar.

    Raises:
      UserError: an unknown name, a module that is not there, bad data, or a task without rows.
    """
    data_tasks.use_vocab(vocab, tokenizer)
    for module in modules:
        shipped.import_module(module)
    provider = data_tasks.find(name)
    its_tasks = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    folders = {
        task.name: task_folder(task, vocab, tokenizer, out=out, config=config) for task in its_tasks
    }
    jobs = [
        ShardJob(task.name, split, shard, folders[task.name] / split)
        for task in its_tasks
        for split in task.splits
        if split in SPLITS and not (folders[task.name] / split / artifacts.MANIFEST).is_file()
        for shard in range(config.num_shards)
    ]
    with tqdm(jobs, desc=f"prepare {name}", unit="shard", disable=quiet or None) as bar:
        for job in bar:
            bar.set_postfix_str(f"{job.task} {job.split}")
            prepare_shard(job, vocab=vocab, config=config)
            if job.shard == config.num_shards - 1:
                _finish_split(job, vocab=vocab, config=config)
    prepared = []
    for task in sorted(its_tasks, key=lambda task: task.name):
        rate = float(provider.get_rate(task)) if isinstance(provider, seqio.Mixture) else 1.0
        splits = _split_folders(folders[task.name], Path(out))
        if "train" not in splits:
            raise UserError(
                f"task {task.name}: gives no rows of {config.length} ids in split train"
            )
        prepared.append(mixture.PreparedTask(task.name, rate, splits))
    made = mixture.PreparedMixture(name, config.length, vocab.fingerprint, tuple(prepared))
    return mixture.write_mixture(out, made)


def prepare_shard(job: ShardJob, *, vocab: Vocab, config: PrepareConfig) -> None:
    """Makes one file of rows and, after it, its counts; does nothing if both are there."""
    path = job.path(config)
    counts_path = path.with_suffix(".json")
    if path.is_file() and counts_path.is_file():
        return
    task = seqio.TaskRegistry.get(job.task)
    packer = Packer(config.length, open_rows=config.open_rows)
    examples = read_examples(task, split=job.split, shard=job.shard, num_shards=config.num_shards)
    counts = rows.write_rows(
        path,
        _examples_to_rows(examples, packer, config, job.shard),
        vocab=vocab,
        length=config.length,
    )
    packed = {
        f"{name}_documents": getattr(packer.counts, name) for name in ("split", "dropped", "empty")
    }
    artifacts.write_json(
        counts_path, dataclasses.asdict(counts) | {"documents": packer.counts.documents} | packed
    )


def read_examples(
    task: seqio.Task, *, split: str, shard: int = 0, num_shards: int = 1
) -> Iterator[Example]:
    """The examples of a task in the source's order; UserError where the data is bad."""
    info = seqio.ShardInfo(index=shard, num_shards=num_shards) if num_shards > 1 else None
    try:
        dataset = task.get_dataset(
            split=split, shuffle=False, shard_info=info, try_in_mem_cache=False
        )
        for row in dataset.as_numpy_iterator():
            yield Example(row.get("inputs", np.zeros(0, np.int32)), row["targets"])
    except (tf.errors.OpError, ValueError, FileNotFoundError, NotImplementedError) as error:
        # TensorFlow wraps what Python code of a pipeline raises; its message holds ours.
        found = re.search(r"UserError: (.*)", str(error))
        line = found.group(1) if found else str(error).strip().splitlines()[0]
        raise UserError(f"task {task.name}: {line}") from error


def task_folder(
    task: seqio.Task,
    vocab: Vocab,
    tokenizer: TextTokenizer,
    *,
    out: str | Path,
    config: PrepareConfig,
) -> Path:
    """Where a task's rows go: its name, and what made them."""
    made_from = [
        task_identity(task),
        vocab.fingerprint,
        tokenizer.fingerprint,
        config,
        formats.VERSION,
    ]
    return Path(out) / f"{task.name}-{configs.fingerprint(made_from)[:12]}"


def task_identity(task: seqio.Task) -> str:
    """Names what a task gives: its data, and the code that runs on it."""
    source: Any = task.source
    if isinstance(source, data_tasks.RowSource):
        data = source.rows.identity()
    elif isinstance(source, seqio.TfdsDataSource):
        try:
            info = source.tfds_dataset.info
        except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
            raise UserError(
                f"task {task.name}: {_TFDS_ABSENT.format(source.tfds_dataset.name)}"
            ) from error
        sizes = {str(k): [split.num_examples, split.num_bytes] for k, split in info.splits.items()}
        data = [repr(source), info.full_name, sizes]
    else:
        shards = [shard for split in source.splits for shard in source.list_shards(split)]
        data = [
            artifacts.sha256_file(shard) if Path(shard).is_file() else shard for shard in shards
        ]
        data.append(code_identity(getattr(source, "_dataset_fn", type(source))))
    return configs.fingerprint(
        [task.name, data, [code_identity(step) for step in task.preprocessors]]
    )


def _examples_to_rows(
    examples: Iterable[Example], packer: Packer, config: PrepareConfig, shard: int
) -> Iterator[Row]:
    for example in _shuffle(examples, config, shard):
        # Half of a pair would teach a wrong answer; a piece of a text does not.
        too_long = "drop" if len(example.inputs) else "split"
        yield from packer.add(example_to_document(example), too_long=too_long)
    yield from packer.finish()


def _shuffle(examples: Iterable[Example], config: PrepareConfig, shard: int) -> Iterator[Example]:
    """Shuffles within runs of `shuffle_documents`, by seed and shard alone."""
    run: list[Example] = []
    number = 0
    for example in examples:
        run.append(example)
        if len(run) == config.shuffle_documents:
            yield from _permuted(run, [config.seed, shard, number])
            run, number = [], number + 1
    yield from _permuted(run, [config.seed, shard, number])


def _permuted(run: list[Example], seed: list[int]) -> Iterator[Example]:
    return (run[i] for i in np.random.default_rng(seed).permutation(len(run)))


def _finish_split(job: ShardJob, *, vocab: Vocab, config: PrepareConfig) -> None:
    """Writes the manifest of a split whose shards are all there."""
    files, totals = [], {}
    for shard in range(config.num_shards):
        path = dataclasses.replace(job, shard=shard).path(config)
        counts = artifacts.read_json(path.with_suffix(".json"))
        totals = {name: totals.get(name, 0) + count for name, count in counts.items()}
        files.append(rows.RowFile(path.name, counts["rows"], path.stat().st_size))
    rows.write_row_manifest(
        job.folder, files, task=job.task, split=job.split, vocab=vocab, length=config.length,
        counts=totals, inputs={"prepared": job.folder.parent.name}, config=configs.to_json(config),
        seed=config.seed,
    )  # fmt: skip
    for leftover in job.folder.glob(".rows-*.tmp"):  # of a killed run
        leftover.unlink()


def _split_folders(folder: Path, out: Path) -> dict[str, str]:
    """The finished splits of a task that hold rows, relative to `out`; with their offsets."""
    found = [split for split in SPLITS if (folder / split / artifacts.MANIFEST).is_file()]
    for split in found:  # folders of an earlier version have none
        rows.add_offsets(folder / split)
    return {
        split: str((folder / split).relative_to(out))
        for split in found
        if artifacts.read_manifest(folder / split).counts["rows"]
    }
