"""Registers SeqIO tasks in a line each: files, codes folders, TFDS -> {"inputs", "targets"}.

The contract is in tasks/README.md. Registering reads no file and needs no vocabulary; both are
needed when examples are read. TensorFlow is imported here: training never imports this file.
"""

import difflib
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import seqio
import tensorflow as tf

from speechlm_jax.data import content
from speechlm_jax.data.formats import Writer
from speechlm_jax.data.rates import Rate, to_rates
from speechlm_jax.data.sources import SPLITS, Keep, Place, Rows
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab

Format = Literal["text", "speech", "asr", "tts", "voiced_tts", "interleaved", "dialogue"]
FIELDS: dict[Format, tuple[str, ...]] = {  # fields that a format is written from
    "text": ("text",),
    "speech": ("codes",),
    "asr": ("codes", "text"),
    "tts": ("codes", "text"),
    "voiced_tts": ("codes", "text", "speaker"),
    "interleaved": ("segments",),
    "dialogue": ("turns",),
}
_TENSORS = {
    "text": tf.TensorSpec((), tf.string),
    "codes": tf.TensorSpec((None,), tf.int32),
    "speaker": tf.TensorSpec((), tf.string),
    "segments": tf.TensorSpec((), tf.string),  # JSON
    "turns": tf.TensorSpec((), tf.string),  # JSON
}

_writer: Writer | None = None


def use_vocab(vocab: Vocab, tokenizer: TextTokenizer) -> None:
    """Sets the vocabulary in which all tasks write their examples from now on."""
    global _writer
    _writer = Writer(vocab, tokenizer)


def current_writer() -> Writer:
    """Returns the writer in the vocabulary in use; raises UserError if there is none."""
    if _writer is None:
        raise UserError(
            "tasks: no vocabulary is in use; call data.tasks.use_vocab first (prepare does)"
        )
    return _writer


# --- Functions for the files in tasks/. ---


def text(
    name: str,
    files: Place | Sequence[Place],
    *,
    field: str = "text",
    validation_ratio: float = 0.01,
    keep: Keep | None = None,
    metric_fns: Sequence[Callable] = (),
) -> seqio.Task:
    """Registers text files: .txt (a document a line), .jsonl (a row a line), .parquet; or globs.

    Args:
      name: name of the task.
      files: files in reading order; a callable is called when they are read.
      field: field of a row that holds the text.
      validation_ratio: fraction held out of the rows without a "split" field.
      keep: predicate of the rows to take.
      metric_fns: SeqIO metric functions.
    """
    rows = Rows(_places(files), False, {"text": field}, validation_ratio, keep)
    return register(name, RowSource(rows), "text", metric_fns=metric_fns)


def text_function(
    name: str,
    texts: Callable[[str], Iterable[str]],
    *,
    splits: Sequence[str] = SPLITS,
    metric_fns: Sequence[Callable] = (),
) -> seqio.Task:
    """Registers a function split -> documents; it must return the same documents each time."""

    def dataset(
        split: str, shuffle_files: bool = False, seed: int | None = None
    ) -> tf.data.Dataset:
        del shuffle_files, seed  # prepare shuffles
        return tf.data.Dataset.from_generator(
            lambda: ({"text": document} for document in texts(split)),
            output_signature=_spec(["text"]),
        )

    return register(name, FunctionSource(dataset, splits), "text", metric_fns=metric_fns)


def text_tfds(
    name: str,
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    field: str = "text",
    splits: Mapping[str, str] | None = None,
    metric_fns: Sequence[Callable] = (),
) -> seqio.Task:
    """Registers the text of a TFDS data set that is on disk (nothing is downloaded).

    Args:
      name: name of the task.
      dataset: TFDS name with version, e.g. "my_stories:1.0.0" or "c4/en:3.1.0".
      data_dir: TFDS's folder; None is its default.
      field: feature that holds the text.
      splits: our split -> TFDS's, e.g. {"train": "train[1%:]", "validation": "train[:1%]"}; None
        takes the data set's own.
      metric_fns: SeqIO metric functions.

    Raises:
      UserError: `dataset` names no version.
    """
    if not re.fullmatch(r"[^:]+:[^:]+", dataset):
        raise UserError(f"task {name}: {dataset}: names no version; e.g. my_stories:1.0.0")
    source = seqio.TfdsDataSource(
        dataset,
        tfds_data_dir=None if data_dir is None else str(data_dir),
        splits=None if splits is None else dict(splits),
        read_only=True,
    )
    return register(name, source, "text", field=field, metric_fns=metric_fns)


def speech(name: str, folders: Place | Sequence[Place], **options: Any) -> seqio.Task:
    """Registers codes folders as speech alone; options: validation_ratio, keep, metric_fns."""
    return _register_folders(name, folders, "speech", **options)


def asr(name: str, folders: Place | Sequence[Place], **options: Any) -> seqio.Task:
    """Registers codes folders as speech -> its text; options as in `speech`."""
    return _register_folders(name, folders, "asr", **options)


def tts(name: str, folders: Place | Sequence[Place], **options: Any) -> seqio.Task:
    """Registers codes folders as text -> its speech; options as in `speech`."""
    return _register_folders(name, folders, "tts", **options)


def voiced_tts(name: str, folders: Place | Sequence[Place], **options: Any) -> seqio.Task:
    """Registers codes folders as voice and text -> speech: the data of a text-to-token model."""
    return _register_folders(name, folders, "voiced_tts", **options)


def dialogue(name: str, folders: Place | Sequence[Place], **options: Any) -> seqio.Task:
    """Registers folders of dialogues, for fine-tuning; options as in `speech`."""
    return _register_folders(name, folders, "dialogue", **options)


def interleaved(name: str, folders: Place | Sequence[Place], **options: Any) -> seqio.Task:
    """Registers interleaved folders; options as in `speech`."""
    return _register_folders(name, folders, "interleaved", **options)


def folder_text(name: str, folders: Place | Sequence[Place], **options: Any) -> seqio.Task:
    """Registers the text of codes or interleaved folders as plain text; options as in `speech`."""
    return _register_folders(name, folders, "text", **options)


def mixture(name: str, rates: Mapping[str, Rate]) -> seqio.Mixture:
    """Registers a mixture of tasks by SeqIO rates; a plan reads them as shares of tokens.

    Args:
      name: name of the mixture.
      rates: rate of each task, or mixture, inside it: a number, or a function of the task such as
        `seqio.mixing_rate_num_examples`, which is called when the mixture is prepared.

    Raises:
      UserError: a name is taken or unknown, or `rates.to_rates` refuses the rates.
    """
    check_new("mixture", name)
    for task in rates:
        find(task)
    # The result of a function is not known yet: it counts as a rate above 0.
    to_rates(name, {task: 1 if callable(rate) else rate for task, rate in rates.items()})
    return seqio.MixtureRegistry.add(name, list(rates.items()))


def check_new(kind: str, name: str) -> None:
    """Raises UserError if a name is taken, or unfit for a task or mixture and its folder."""
    if not re.fullmatch(r"\w[\w.:#]*", name):
        raise UserError(f"{kind} {name!r}: a name holds letters, digits, _ . : # and no blanks")
    if name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        raise UserError(f"{kind} {name}: is registered twice; give one of them another name")


def find(name: str) -> seqio.Task | seqio.Mixture:
    """Returns a registered task or mixture; UserError names the nearest."""
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else "none is registered; name its module with --module"
        )
        raise UserError(f"no task or mixture is named '{name}'; {hint}")
    return seqio.get_mixture_or_task(name)


# --- Parts of the helpers, for tasks of your own. ---


def register(
    name: str,
    source: seqio.DataSource,
    format: Format,
    *,
    field: str = "text",
    preprocessors: Sequence[Callable] = (),
    metric_fns: Sequence[Callable] = (),
) -> seqio.Task:
    """Registers a SeqIO task: a source, preprocessors that give a format's fields, the format."""
    check_new("task", name)
    if format not in FIELDS:
        raise UserError(f"task {name}: format {format!r} is none of {', '.join(FIELDS)}")
    write = functools.partial(write_examples, format=format, field=field)
    return seqio.TaskRegistry.add(
        name,
        source=source,  # pyright: ignore[reportArgumentType]  # SeqIO's own base class
        preprocessors=[*preprocessors, write],
        output_features=output_features(),
        metric_fns=list(metric_fns),
    )


def output_features() -> dict[str, seqio.Feature]:
    """Returns the features of every task: `targets`, and `inputs` where a side has no loss.

    SeqIO's `append_eos` and the like end `targets` in eos, and leave `inputs` as they are.
    """
    make = functools.partial(seqio.Feature, SpeechTextVocabulary(), dtype=tf.int32)
    return {"inputs": make(add_eos=False, required=False), "targets": make(add_eos=True)}


def write_examples(
    dataset: tf.data.Dataset, *, format: Format, field: str = "text"
) -> tf.data.Dataset:
    """Preprocessor: turns a format's `FIELDS` into `targets` and (possibly empty) `inputs`."""
    names = [field if name == "text" else name for name in FIELDS[format]]

    def write(*values: Any) -> tuple[np.ndarray, np.ndarray]:
        plain = [*map(_to_plain, names, values)]
        example = content.write(current_writer(), format, plain)
        return example.inputs, example.targets

    @tf.autograph.experimental.do_not_convert
    def one(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        given = [example[name] for name in names]
        inputs, targets = tf.numpy_function(write, given, [tf.int32, tf.int32])
        return {
            "inputs": tf.ensure_shape(inputs, [None]),
            "targets": tf.ensure_shape(targets, [None]),
        }

    return dataset.map(one)


class RowSource(seqio.DataSource):
    """`Rows` as a SeqIO source; each file is a shard."""

    def __init__(self, rows: Rows):
        super().__init__(SPLITS)
        self.rows = rows
        self.passed_over: Counter[str] = Counter()  # rows of other splits
        self._counts: dict[str, tuple[Any, int]] = {}  # by split: rows and file stats, count

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> list[str]:
        return [str(file) for file in self.rows.files()]

    def num_input_examples(self, split: str) -> int:
        """Counts the rows of a split by reading them, once while the files stay the same."""
        files = self.rows.files()
        stats = [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        if split not in self._counts or self._counts[split][0] != (self.rows, stats):
            count = sum(1 for _ in self.rows.examples(files, split))
            self._counts[split] = ((self.rows, stats), count)
        return self._counts[split][1]

    def get_dataset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        del shuffle, seed, unused  # rows come in order: Task.get_dataset and prepare shuffle
        vocab = current_writer().vocab
        self.rows.check(vocab)
        files = self.rows.files()
        if shard_info is not None:
            files = files[shard_info.index :: shard_info.num_shards]
        return tf.data.Dataset.from_generator(
            lambda: self.rows.examples(
                files, split, codebook_size=vocab.codebook_size, passed_over=self.passed_over
            ),
            output_signature=_spec(self.rows.fields),
        )


class FunctionSource(seqio.FunctionDataSource):
    """A SeqIO source of a function that can count the function's examples."""

    @functools.cache  # noqa: B019  # sources stay registered as long as the process lives
    def num_input_examples(self, split: str) -> int:
        """Counts the examples of a split by making them, once."""
        return sum(1 for _ in self.get_dataset(split, shuffle=False))


class SpeechTextVocabulary(seqio.Vocabulary):
    """SeqIO's view of the vocabulary in use: encodes text, decodes ids of both modalities."""

    @property
    def eos_id(self) -> int:
        return current_writer().vocab["eos"]

    @property
    def unk_id(self) -> None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return current_writer().vocab.size

    def _encode(self, s: str) -> list[int]:
        return current_writer().tokenizer.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return current_writer().ids_to_text(list(map(int, ids)))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(data: Any) -> np.ndarray:  # bytes in a graph, an array of bytes outside one
            return np.array(self._encode(np.asarray(data).item().decode()), np.int32)

        return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda data: self._decode(data).encode(), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpeechTextVocabulary)

    def __hash__(self) -> int:
        return hash(SpeechTextVocabulary)


def _register_folders(
    name: str,
    folders: Place | Sequence[Place],
    format: Format,
    *,
    validation_ratio: float = 0.01,
    keep: Keep | None = None,
    metric_fns: Sequence[Callable] = (),
) -> seqio.Task:
    fields = {field: field for field in FIELDS[format]}
    rows = Rows(_places(folders), True, fields, validation_ratio, keep)
    return register(name, RowSource(rows), format, metric_fns=metric_fns)


def _places(places: Place | Sequence[Place]) -> tuple[Place, ...]:
    if isinstance(places, (str, Path)) or callable(places):
        return (places,)
    return tuple(places)


def _spec(fields: Iterable[str]) -> dict[str, tf.TensorSpec]:
    return {field: _TENSORS[field] for field in fields}


def _to_plain(name: str, value: Any) -> Any:
    """Converts a value from numpy_function to what a Writer takes."""
    if name in ("segments", "turns"):
        return json.loads(value)
    return value.decode() if isinstance(value, bytes) else value
