"""What a user hears of prepared tasks: words that the vocabulary lacks, and what is held out."""

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

WARN_RATIO, REFUSE_RATIO = 0.01, 0.20  # of the ids of text, those that stand for unknown words
ENOUGH_TOKENS = 10_000  # ids of text that tell whether a task that is half done is refused

_log = logging.getLogger("speechlm.data")


@dataclasses.dataclass
class TextCounts:
    """Ids that text is written in (no specials), and those of them that stand for unknown words."""

    plain_tokens: int = 0
    unknown_tokens: int = 0

    def count(self, examples: Iterable[Example], writer: Writer) -> Iterator[Example]:
        """The same examples, which are counted; letters that were left out count as unknown."""
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


def check_unknown(task: str, folder: Path, *, allow: bool) -> None:
    """Looks at the finished splits of a task for words that the vocabulary lacks.

    Raises:
      UserError: they are more than a fifth, and `allow` does not say that they may be.
    """
    counts = [_counts(folder / split) for split in SPLITS]
    plain, unknown = (
        sum(of_split.get(name, 0) for of_split in counts)
        for name in ("plain_tokens", "unknown_tokens")
    )
    is_enough = all(counts) or plain >= ENOUGH_TOKENS
    if not is_enough or unknown <= WARN_RATIO * plain:
        return
    found = f"task {task}: {unknown} of {plain} text ids ({unknown / plain:.1%}) are unknown words"
    way_out = (
        "learn a vocabulary of this text with `speechlm vocab`, and prepare with --run of that"
    )
    if unknown > REFUSE_RATIO * plain and not allow:
        raise UserError(f"{found}; {way_out}, or give --allow-unknown")
    if all(counts):
        _log.warning("%s; %s", found, way_out)


def tell_of_splits(folders: Mapping[str, Path]) -> None:
    """Warns of tasks that hold nothing out, set documents aside, or train on what is held out."""
    trained = count_trained(folders)
    for task, folder in folders.items():
        counts = {split: _counts(folder / split) for split in SPLITS}
        held_out = counts["validation"].get("documents", 0)
        if not held_out:
            _log.warning("task %s: no document is held out, so it has no held-out loss", task)
        if empty := sum(of_split.get("empty_documents", 0) for of_split in counts.values()):
            _log.warning("task %s: %d documents hold nothing and are left out", task, empty)
        if trained[task]:
            _log.warning(
                "task %s: %d things that its %d held-out documents say are trained on too; "
                'its held-out loss is too good (rows of one document need one "split")',
                task, trained[task], held_out,
            )  # fmt: skip
        sizes = ", ".join(
            f"{of_split.get('documents', 0)} documents in {split}"
            for split, of_split in counts.items()
        )
        _log.info("task %s: %s", task, sizes)


def _counts(folder: Path) -> dict[str, int]:
    """The counts of a finished split; none of one that is not there."""
    is_there = (folder / artifacts.MANIFEST).is_file()
    return artifacts.read_manifest(folder).counts if is_there else {}
