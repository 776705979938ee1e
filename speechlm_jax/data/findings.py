"""Reports on prepared tasks: words that the vocabulary lacks, and held-out documents."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.data.formats import Example, Writer
from speechlm_jax.data.sources import SPLITS
from speechlm_jax.data.splits import count_trained
from speechlm_jax.errors import UserError

WARN_RATIO, REFUSE_RATIO = 0.01, 0.20  # fraction of text ids that stand for unknown words
ENOUGH_TOKENS = 10_000  # held-out text ids from which a task can be judged

_log = logging.getLogger("speechlm.data")


@dataclasses.dataclass
class TextCounts:
    """Counts of text ids (without specials), and of those that stand for unknown words."""

    plain_tokens: int = 0
    unknown_tokens: int = 0

    def count(self, examples: Iterable[Example], writer: Writer) -> Iterator[Example]:
        """Yields the same examples and counts their ids; left-out letters count as unknown."""
        tokenizer = writer.tokenizer
        before = tokenizer.left_out
        for example in examples:
            ids = np.concatenate([example.inputs, example.targets])
            self.plain_tokens += int(writer.vocab.is_text(ids).sum())
            if tokenizer.unknown_id is not None:
                self.unknown_tokens += int((ids == tokenizer.unknown_id).sum())
            yield example
        self.plain_tokens += tokenizer.left_out - before
        self.unknown_tokens += tokenizer.left_out - before


def check_unknown(folders: Mapping[str, Path], *, allow: bool, least: int = 0) -> None:
    """Checks the finished splits of tasks for words that the vocabulary lacks.

    Args:
      folders: folders of the tasks, by name.
      allow: true to accept any number of them.
      least: number of text ids below which a task is not judged.

    Raises:
      UserError: they are more than a fifth of a task's text ids.
    """
    for task, folder in folders.items():
        plain, unknown = _unknown(_split_counts(folder))
        if plain >= least and unknown > REFUSE_RATIO * plain and not allow:
            raise UserError(f"{_describe(task, plain, unknown)}, or give --allow-unknown")


def tell(folders: Mapping[str, Path]) -> None:
    """Warns of faults in prepared tasks that do not prevent training, and logs the tasks' sizes."""
    trained = count_trained(folders)
    for task, folder in folders.items():
        counts = _split_counts(folder)
        plain, unknown = _unknown(counts)
        held_out = counts["validation"].get("documents", 0)
        empty = sum(of_split.get("empty_documents", 0) for of_split in counts.values())
        if unknown > WARN_RATIO * plain:
            _log.warning("%s", _describe(task, plain, unknown))
        if not held_out:
            _log.warning("task %s: no document is held out, so it has no held-out loss", task)
        if empty:
            _log.warning("task %s: %d documents hold nothing and are left out", task, empty)
        if trained[task]:
            _log.warning(
                "task %s: %d things that its %d held-out documents say are trained on too, so that "
                'its held-out loss is too low; give all rows of a document the same "split"',
                task, trained[task], held_out,
            )  # fmt: skip
        train, others, long = (
            counts["train"].get(f"{name}documents", 0) for name in ("", "other_split_", "dropped_")
        )
        if long:
            _log.warning(
                "task %s: %d of %d documents are longer than a row and are left out, as half of a "
                "pair teaches a wrong answer; prepare longer rows with --length",
                task, long, train + long,
            )  # fmt: skip
        passed = f"; {others} of other splits are left out" if others else ""
        _log.info("task %s: %d documents to train on, %d held out%s", task, train, held_out, passed)


def _split_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Returns the counts of each split; an empty dict for an unfinished split."""
    return {
        split: artifacts.read_manifest(folder / split).counts
        if (folder / split / artifacts.MANIFEST).is_file()
        else {}
        for split in SPLITS
    }


def _unknown(counts: Mapping[str, Mapping[str, int]]) -> tuple[int, int]:
    """Returns the number of text ids in all splits, and of those that stand for unknown words."""
    plain, unknown = (
        sum(of_split.get(field.name, 0) for of_split in counts.values())
        for field in dataclasses.fields(TextCounts)
    )
    return plain, unknown


def _describe(task: str, plain: int, unknown: int) -> str:
    return (
        f"task {task}: {unknown} of {plain} text ids ({unknown / plain:.1%}) are unknown words; "
        "learn a vocabulary of this text with `speechlm vocab`, and prepare with --run of that"
    )
