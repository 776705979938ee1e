"""Prepares tasks once each: runs their preprocessors, packs rows, writes them, the manifest last.

The rows of a shard are a function of (task, config, shard) alone, so that an interrupted split
continues with the shards that are not done (`speechlm_jax.jobs.shards`).
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.data import content, findings, formats, mixture, rows, splits
from speechlm_jax.data import tasks as data_tasks
from speechlm_jax.data.code_identity import code_identity
from speechlm_jax.data.contract import check_features, known_ids, row_to_example
from speechlm_jax.data.formats import Example, example_to_document
from speechlm_jax.data.packing import Packer, Row
from speechlm_jax.data.rates import task_rates
from speechlm_jax.data.sources import SPLITS
from speechlm_jax.errors import UserError
from speechlm_jax.jobs.commit import SHARDS, Shard, clear
from speechlm_jax.jobs.shards import iter_shards
from speechlm_jax.text import TextTokenizer
from speechlm_jax.user_code import user_code
from speechlm_jax.vocab import Vocab

# Version of the checks and of the arguments of preprocessors: when it changes, tasks with code of
# their own are prepared again. The documents of data/formats.py have a version of their own.
CONTRACT = 2
_log = logging.getLogger("speechlm.data")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings for preparing tasks.

    Attributes:
      length: ids per row.
      seed: seed of the order of documents before packing, and of preprocessors that draw.
      num_shards: files of each task and split, and independent pieces of work.
      shuffle_documents: documents are shuffled within runs of this many, so that a row is not
        filled from one corner of the data; 1 keeps the order.
      open_rows: rows that the packer keeps open.
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
    """One file of rows to make: a piece of work that depends on nothing else.

    `folder` is the folder of the split's finished files.
    """

    task: str
    split: str
    shard: int
    folder: Path

    def file_name(self, config: PrepareConfig) -> str:
        """Returns the name of the file."""
        return f"rows-{self.shard:05d}-of-{config.num_shards:05d}.arrayrecord"


def prepare(
    name: str,
    *,
    modules: Sequence[str] = (),
    vocab: Vocab,
    tokenizer: TextTokenizer,
    out: str | Path,
    config: PrepareConfig,
    allow_unknown: bool = False,
    quiet: bool = False,
) -> Path:
    """Prepares a mixture (or one task) and returns its file, which training reads.

    A task goes to `out/<task>-<fingerprint>/<split>/`. The fingerprint covers its data, code,
    vocabulary and config, so that unchanged tasks are not prepared again.

    Args:
      name: a registered mixture or task.
      modules: modules that register it, if not imported yet: dotted names or .py files.
      vocab: vocabulary of the rows' ids.
      tokenizer: tokenizer of its text.
      out: folder of all prepared tasks.
      config: row length, seed, shards.
      allow_unknown: true to accept tasks with many words that the text vocabulary lacks.
      quiet: true to show no progress bar.

    Raises:
      UserError: the name is unknown, a module is missing, data is bad, or a task has no rows or too
        many unknown words.
    """
    data_tasks.use_vocab(vocab, tokenizer)
    for module in modules:
        shipped.import_module(module)
    rates = task_rates(data_tasks.find(name))
    its_tasks = [seqio.TaskRegistry.get(task) for task in rates]
    for task in its_tasks:
        _check_declared(task)
    _agree_on_splits(its_tasks, out)
    folders = {
        task.name: task_folder(task, vocab, tokenizer, out=out, config=config) for task in its_tasks
    }
    splits_to_do = _splits_to_do(its_tasks, folders)
    for first in splits_to_do:  # reports a preprocessor that cannot run before hours of work
        make_dataset(first, config)
    shards = len(splits_to_do) * config.num_shards
    with tqdm(total=shards, desc=f"prepare {name}", unit="shard", disable=quiet or None) as bar:
        for first in splits_to_do:
            bar.set_postfix_str(f"{first.task} {first.split}")
            _prepare_split(first, vocab=vocab, config=config, progress=bar.update)
            _check_finished(first, allow_unknown=allow_unknown)
    findings.check_unknown(folders, allow=allow_unknown)  # also splits finished before
    findings.tell(folders)
    prepared = tuple(
        mixture.PreparedTask(task, rate, _split_folders(task, folders[task], Path(out), config))
        for task, rate in rates.items()
    )
    made = mixture.PreparedMixture(name, config.length, vocab.fingerprint, prepared)
    return mixture.write_mixture(out, made, tokenizer)


def _agree_on_splits(tasks: Iterable[seqio.Task], out: str | Path) -> None:
    """Makes the tasks that read rows hold out the same documents."""
    sources = {t.name: t.source for t in tasks if isinstance(t.source, data_tasks.RowSource)}
    agreed = splits.agree({name: source.rows for name, source in sources.items()}, out=out)
    for name, source in sources.items():
        source.rows = agreed[name]


def _splits_to_do(tasks: Iterable[seqio.Task], folders: Mapping[str, Path]) -> list[ShardJob]:
    """Returns the first shard of every unfinished split; clears what is left over in finished ones.

    Held-out documents come first: a few of each task show whether the vocabulary has its words.
    """
    to_do = []
    for split in reversed(SPLITS):
        for task in tasks:
            folder = folders[task.name] / split
            if (folder / artifacts.MANIFEST).is_file():
                clear(folder)
            elif split in task.splits:
                to_do.append(ShardJob(task.name, split, 0, folder))
    return to_do


def _prepare_split(
    first: ShardJob, *, vocab: Vocab, config: PrepareConfig, progress: Callable[[], object]
) -> None:
    """Makes the missing files of a split, then its manifest."""

    def make(number: int, folder: Path) -> dict[str, int]:
        job = dataclasses.replace(first, shard=number)
        return prepare_shard(job, folder, vocab=vocab, config=config)

    folder, shards = first.folder, []
    if not (folder / SHARDS).is_dir() and any(folder.glob("rows-*")):
        _log.info("%s: is of an unfinished build by an earlier version; made anew", folder)
    for shard in iter_shards(
        make,
        range(config.num_shards),
        folder=folder / SHARDS,
        fingerprint=f"{folder.parent.name}/{folder.name}",
        into=folder,
    ):
        shards.append(shard)
        progress()
    _finish_split(first, shards, vocab=vocab, config=config)
    clear(folder)


def prepare_shard(
    job: ShardJob, folder: Path, *, vocab: Vocab, config: PrepareConfig
) -> dict[str, int]:
    """Shard task: writes one file of rows, their offsets, keys and counts; returns the counts."""
    path = folder / job.file_name(config)
    passed_over = getattr(seqio.TaskRegistry.get(job.task).source, "passed_over", {})
    passed_over.clear()
    packer = Packer(config.length, open_rows=config.open_rows)
    text = findings.TextCounts()
    examples = text.count(
        read_examples(job, vocab=vocab, config=config), data_tasks.current_writer()
    )
    with artifacts.atomic_file(path.with_suffix(splits.KEYS)) as keys, content.noting(keys):
        counts = rows.write_rows(
            path,
            _examples_to_rows(examples, packer, config, job.shard),
            vocab=vocab,
            length=config.length,
        )
    packed = {
        f"{name}_documents": getattr(packer.counts, name) for name in ("split", "dropped", "empty")
    }
    found = dataclasses.asdict(counts) | dataclasses.asdict(text)
    packed["other_split_documents"] = sum(passed_over.values())
    made = found | {"documents": packer.counts.documents} | packed
    artifacts.write_json(path.with_suffix(".json"), made)
    return made


def read_examples(job: ShardJob, *, vocab: Vocab, config: PrepareConfig) -> Iterator[Example]:
    """Yields the examples of a shard in the source's order.

    Raises:
      UserError: a task's own code fails, or an example breaks the contract; the message names the
        task.
    """
    known, eos = known_ids(vocab), vocab["eos"]
    given: Any = make_dataset(job, config).as_numpy_iterator()
    with user_code(f"task {job.task}, split {job.split}"):
        for number, row in enumerate(given, 1):
            try:
                yield row_to_example(row, known=known, eos=eos)
            except UserError as error:
                raise UserError(f"document {number}: {error}") from None


def make_dataset(job: ShardJob, config: PrepareConfig) -> tf.data.Dataset:
    """Returns a shard's examples from SeqIO; raises UserError if a preprocessor rejects its input.

    Preprocessors get the row length, as they get a sequence length from SeqIO's trainers; but
    nothing is trimmed after them, because the packer keeps what is longer than a row.
    """
    task = seqio.TaskRegistry.get(job.task)
    many = config.num_shards > 1
    info = seqio.ShardInfo(index=job.shard, num_shards=config.num_shards) if many else None
    with user_code(f"task {job.task}, split {job.split}"):
        tf.random.set_seed(config.seed)  # for preprocessors that draw, e.g. seqio's with `seed`
        return task.get_dataset(
            dict.fromkeys(task.output_features, config.length),
            split=job.split, shuffle=False, shard_info=info, trim_output_features=False,
            try_in_mem_cache=False,
        )  # fmt: skip


def task_folder(
    task: seqio.Task,
    vocab: Vocab,
    tokenizer: TextTokenizer,
    *,
    out: str | Path,
    config: PrepareConfig,
) -> Path:
    """Returns the folder of a task's rows: its name, and a fingerprint of all that makes them."""
    made_from = [
        task_identity(task),
        vocab.fingerprint,
        tokenizer.fingerprint,
        config,
        formats.VERSION,
    ]
    return Path(out) / f"{task.name}-{configs.fingerprint(made_from)[:12]}"


def task_identity(task: seqio.Task) -> str:
    """Returns the identity of a task's output: its data, and the code that runs on it."""
    with user_code(f"task {task.name}"):
        functions = [getattr(step, "func", None) for step in task.preprocessors]
        steps = [code_identity(step) for step in task.preprocessors]
        if functions != [data_tasks.write_examples]:
            steps.append(CONTRACT)
        return configs.fingerprint([task.name, _source_identity(task.source), steps])


def _source_identity(source: Any) -> Any:
    if isinstance(source, data_tasks.RowSource):
        return source.rows.identity()
    if isinstance(source, seqio.TfdsDataSource):
        info = _tfds_info(source)
        sizes = {str(k): [split.num_examples, split.num_bytes] for k, split in info.splits.items()}
        return [repr(source), info.full_name, sizes]
    shards = [shard for split in source.splits for shard in source.list_shards(split)]
    data = [artifacts.sha256_file(shard) if Path(shard).is_file() else shard for shard in shards]
    return [*data, code_identity(getattr(source, "_dataset_fn", type(source)))]


def _tfds_info(source: seqio.TfdsDataSource) -> tfds.core.DatasetInfo:
    try:
        return source.tfds_dataset.info
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError, AssertionError) as error:
        raise UserError(
            f"TFDS data set {source.tfds_dataset.name} is not on disk; build it with TFDS first, "
            "and give its data_dir"
        ) from error


def _check_declared(task: seqio.Task) -> None:
    """Raises UserError if a task cannot be prepared, whatever its data is."""
    with user_code(f"task {task.name}"):
        check_features(task.output_features)
        if isinstance(task.source, seqio.TfdsDataSource):
            _tfds_info(task.source)
        if "train" not in task.splits:
            raise UserError(
                f"has no split train, but {', '.join(task.splits)}; name one of them so"
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
    """Shuffles within runs of `shuffle_documents`; the order depends on seed and shard alone."""
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


def _finish_split(
    first: ShardJob, shards: Sequence[Shard], *, vocab: Vocab, config: PrepareConfig
) -> None:
    """Writes the manifest of a split whose shards are all done."""
    files, totals = [], {}
    for shard in shards:
        counts = shard.result or {}
        totals = {name: totals.get(name, 0) + count for name, count in counts.items()}
        name = dataclasses.replace(first, shard=shard.number).file_name(config)
        files.append(rows.RowFile(name, counts["rows"], (first.folder / name).stat().st_size))
    rows.write_row_manifest(
        first.folder, files, task=first.task, split=first.split, vocab=vocab,
        length=config.length, counts=totals, inputs={"prepared": first.folder.parent.name},
        config=configs.to_json(config), seed=config.seed,
    )  # fmt: skip


def _check_finished(job: ShardJob, *, allow_unknown: bool) -> None:
    """Raises UserError if too many words in a task's finished splits are unknown."""
    least = 0 if job.split == "train" else findings.ENOUGH_TOKENS
    findings.check_unknown({job.task: job.folder.parent}, allow=allow_unknown, least=least)


def _other_splits(task: str, counts: Mapping[str, int]) -> str:
    """Says how many documents are of other splits, and of which ones this process has seen."""
    names = getattr(seqio.TaskRegistry.get(task).source, "passed_over", {})
    named = f": {', '.join(map(repr, sorted(names)[:3]))}" if names else ""
    number = counts.get("other_split_documents", 0)
    return f"{number} are of other splits than {' and '.join(SPLITS)}{named}"


def _split_folders(task: str, folder: Path, out: Path, config: PrepareConfig) -> dict[str, str]:
    """Returns the folders, relative to `out`, of finished splits with rows; adds missing offsets.

    Raises:
      UserError: there is no train split among them.
    """
    found = [split for split in SPLITS if (folder / split / artifacts.MANIFEST).is_file()]
    for split in found:  # folders of an earlier version have none
        rows.add_offsets(folder / split)
    splits = {
        split: str((folder / split).relative_to(out))
        for split in found
        if artifacts.read_manifest(folder / split).counts["rows"]
    }
    if "train" not in splits:
        counts = artifacts.read_manifest(folder / "train").counts
        raise UserError(
            f"task {task}: gives no rows of {config.length} ids in split train "
            f"({counts['dropped_documents']} documents are longer and were left out, "
            f"{counts['empty_documents']} are empty, {_other_splits(task, counts)})"
        )
    return splits
