"""Holds out documents of a mixture: one split by content, for all that is made of a document.

A row without a "split" field is held out if its key (`content.said_key`: what it says) lies below
the task's ratio. Small tasks hold out more: if fewer than FEW different keys lie below the ratio,
they hold out the FEW lowest keys, but at most one in FEW of their keys and, of two or more, at
least one. The keys that such a task holds out in addition are held out by all tasks of the mixture.

A task that says fewer than CLOSED different things, FEW times or more on average (words, commands),
cannot hold out what is said: its rows are held out by their ids.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.data.content import has_words, is_blank, row_to_text
from speechlm_jax.data.sources import SPLITS, Rows, read_rows, row_to_example
from speechlm_jax.errors import UserError
from speechlm_jax.user_code import user_code

FEW, CLOSED = 8, 64
MOST_ROWS = 100_000  # rows of a task that are read; a task with more is not small
KEYS = ".keys"  # suffix, beside a file of rows: the keys of its documents, 8 bytes each
_CHUNK = 1 << 20  # keys read at a time


class _Lowest:
    """The `most` lowest of the different keys that were added."""

    def __init__(self, most: int):
        self.keys: list[int] = []
        self._most = most

    def add(self, key: int) -> None:
        if len(self.keys) == self._most and key > self.keys[-1]:
            return
        at = bisect.bisect_left(self.keys, key)
        if at == len(self.keys) or self.keys[at] != key:
            self.keys.insert(at, key)
            del self.keys[self._most :]


def agree(tasks: Mapping[str, Rows], *, out: str | Path) -> dict[str, Rows]:
    """Returns the tasks of a mixture, each set to hold out what another one holds out.

    Args:
      tasks: rows of each task, by name.
      out: folder that keeps, for each task, which of the others' held-out keys it has.

    Raises:
      UserError: rows cannot be read, or a task has none.
    """
    alone, agreed = {}, {}
    for name, rows in tasks.items():
        with user_code(f"task {name}"):
            alone[name] = hold_out(rows)
    shared = frozenset[int]().union(*(rows.held_out for rows in alone.values() if not rows.by_id))
    for name, rows in alone.items():
        with user_code(f"task {name}"):
            agreed[name] = rows if rows.by_id else _with_theirs(rows, shared, Path(out))
    return agreed


def hold_out(rows: Rows) -> Rows:
    """Returns the rows of a task with the keys that it holds out in addition because it is small.

    Reads at most MOST_ROWS rows; stops once FEW are held out, if the task then has CLOSED different
    keys or names the split of every row.
    """
    rows = dataclasses.replace(rows, held_out=frozenset(), by_id=False)
    if not rows.validation_ratio:
        return rows
    said, called = _Lowest(CLOSED), _Lowest(FEW)
    by_id = dataclasses.replace(rows, by_id=True)
    seen = number = named = 0
    for row in islice(_rows(rows), MOST_ROWS):
        seen += 1
        if row.get("split") is None:
            number += 1
            said.add(rows.key(row))
            called.add(by_id.key(row))
        named += row.get("split") == SPLITS[1]
        below = bisect.bisect_left(said.keys, rows.first_trained)
        if below + named >= FEW and (len(said.keys) == CLOSED or not number):
            return rows
    if not seen:
        raise UserError(f"{rows.paths()[0]}: {_why_none(rows)}")
    if len(said.keys) < CLOSED and number >= max(FEW * len(said.keys), 1):
        return dataclasses.replace(by_id, held_out=_few(called.keys, number, named))
    if seen == MOST_ROWS:
        return rows
    return dataclasses.replace(rows, held_out=_few(said.keys, len(said.keys), named))


def _why_none(rows: Rows) -> str:
    """Returns the reason why none of the rows that are read makes a document.

    Raises:
      UserError: the reason is a field that is missing or wrong.
    """
    number = kept = 0
    for file in rows.files():
        for row in islice(read_rows(file), MOST_ROWS):
            number += 1
            if rows.keep is None or rows.keep(row):
                kept += 1
                row_to_example(file, row, rows.fields, codebook_size=None)
    if not number:
        return "holds no document"
    if not kept:
        return f"`keep` takes none of its {number} rows"
    return f"holds no document: its {kept} rows have nothing to read or to hear"


def _few(keys: list[int], number: int, named: int) -> frozenset[int]:
    """Returns the lowest of `number` keys that a small task holds out beside `named` rows."""
    wanted = min(FEW, max(number // FEW, 1)) - named if number > 1 else 0
    return frozenset(keys[: max(wanted, 0)])


def _rows(rows: Rows) -> Iterator[dict[str, Any]]:
    """Yields the rows that are taken, except those that hold nothing."""
    for file in rows.files():
        for row in read_rows(file):
            if (rows.keep is None or rows.keep(row)) and _holds_something(rows, row):
                yield row


def _holds_something(rows: Rows, row: Mapping[str, Any]) -> bool:
    """Returns whether a row's text and codes make a document, by the rules of `content`."""
    text = row_to_text(row, rows.fields.get("text", "text"))
    if "codes" in rows.fields:
        is_pair = "text" in rows.fields
        return bool(row.get(rows.fields["codes"])) and (has_words(text) or not is_pair)
    return "text" not in rows.fields or not is_blank(text)


def _with_theirs(rows: Rows, shared: frozenset[int], out: Path) -> Rows:
    """Returns the rows, set to hold out the shared keys that they have; finds these once per `out`.

    Other keys do not affect a task, so that it is not prepared again for every small task beside
    it.
    """
    foreign = shared - rows.held_out
    if not foreign:
        return rows
    path = out / f"held-out-{configs.fingerprint([rows.identity(), sorted(foreign)])[:12]}.json"
    if not path.is_file():
        keys = (rows.key(row) for row in _rows(rows) if row.get("split") is None)
        artifacts.write_json(path, sorted({key for key in keys if key in foreign}))
    return dataclasses.replace(rows, held_out=rows.held_out | {*artifacts.read_json(path)})


def count_trained(folders: Mapping[str, Path]) -> dict[str, int]:
    """Counts, by task, the things that its validation rows and some task's train rows both say.

    Args:
      folders: folders of the prepared tasks, by name; each holds its splits.
    """
    held = {task: np.unique(_read_keys(folder / SPLITS[1])) for task, folder in folders.items()}
    every = np.unique(np.concatenate([np.zeros(0, np.uint64), *held.values()]))
    trained = np.zeros(len(every), bool)
    for folder in folders.values() if len(every) else ():
        for path in sorted((folder / SPLITS[0]).glob(f"*{KEYS}")):
            for at in range(0, path.stat().st_size // 8, _CHUNK):
                keys = np.fromfile(path, ">u8", _CHUNK, offset=8 * at)
                place = np.minimum(np.searchsorted(every, keys), len(every) - 1)
                trained[place[every[place] == keys]] = True
    return {task: int(trained[np.searchsorted(every, keys)].sum()) for task, keys in held.items()}


def _read_keys(folder: Path) -> np.ndarray:
    files = [np.fromfile(path, ">u8") for path in sorted(folder.glob(f"*{KEYS}"))]
    return np.concatenate([np.zeros(0, np.uint64), *files]).astype(np.uint64)
