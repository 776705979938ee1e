"""Packs documents of one task into rows of one length, and unpacks them."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from speechlm_jax.arrays import Bool, Int, ndarray

TooLong = Literal["split", "drop"]
OPEN_ROWS = 64  # rows of 2,048 tokens are 0.986 full; 256 open rows gain half a point more


@dataclasses.dataclass(frozen=True)
class Document:
    """A sequence of ids that is modelled on its own.

    Attributes:
      ids: ids of the joint vocabulary.
      loss_mask: true for ids that the model is trained to predict.
    """

    ids: Int[ndarray, " length"]
    loss_mask: Bool[ndarray, " length"]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Row:
    """Documents side by side in a fixed length; the unused rest has segment 0.

    Attributes:
      ids: ids; 0 where the segment is 0 (id 0 is a real token elsewhere).
      segments: 0 for padding; 1, 2, ... for the documents in order.
      positions: position in the document, from 0.
      loss_mask: true for ids that count in the loss.
    """

    ids: Int[ndarray, " length"]
    segments: Int[ndarray, " length"]
    positions: Int[ndarray, " length"]
    loss_mask: Bool[ndarray, " length"]


@dataclasses.dataclass
class PackCounts:
    """Counts of a packer: `documents` were packed, as `pieces` pieces."""

    documents: int = 0
    pieces: int = 0
    split: int = 0
    dropped: int = 0
    empty: int = 0
    tokens: int = 0
    rows: int = 0


class Packer:
    """A first-fit packer over a window of open rows, in the order of the documents.

    A document goes into the oldest open row that has room. If none has room and `open_rows` are
    open, the fullest is closed. A document longer than a row is cut into rows and a rest ("split":
    each piece is a document of its own; for text, speech and interleaved), or left out and counted
    ("drop": half of an ASR or TTS pair teaches a wrong answer).
    """

    def __init__(self, length: int, *, open_rows: int = OPEN_ROWS):
        if length < 2 or open_rows < 1:
            raise ValueError("a packer needs length >= 2 and open_rows >= 1")
        self.counts = PackCounts()
        self._length, self._open_rows = length, open_rows
        self._open: list[list[Document]] = []
        self._free: list[int] = []

    def add(self, document: Document, *, too_long: TooLong = "split") -> list[Row]:
        """Packs one document; returns the rows that this closed."""
        if len(document) == 0:
            self.counts.empty += 1
            return []
        if len(document) > self._length:
            if too_long == "drop":
                self.counts.dropped += 1
                return []
            self.counts.split += 1
        self.counts.documents += 1
        pieces = document_to_pieces(document, length=self._length)
        return [row for piece in pieces for row in self._place(piece)]

    def finish(self) -> list[Row]:
        """Closes all open rows and returns them, oldest first."""
        return [self._close(0) for _ in range(len(self._open))]

    def _place(self, piece: Document) -> list[Row]:
        size, closed = len(piece), []
        self.counts.pieces += 1
        self.counts.tokens += size
        at = next((i for i, free in enumerate(self._free) if free >= size), None)
        if at is None:
            if len(self._open) == self._open_rows:
                fullest = min(range(len(self._free)), key=self._free.__getitem__)
                closed.append(self._close(fullest))
            at = len(self._open)
            self._open.append([])
            self._free.append(self._length)
        self._open[at].append(piece)
        self._free[at] -= size
        if self._free[at] == 0:
            closed.append(self._close(at))
        return closed

    def _close(self, at: int) -> Row:
        self.counts.rows += 1
        self._free.pop(at)
        return _join(self._open.pop(at), self._length)


def pack(
    documents: Iterable[Document],
    *,
    length: int,
    too_long: TooLong = "split",
    open_rows: int = OPEN_ROWS,
) -> Iterator[Row]:
    """Yields rows of `length` packed from documents; `Packer` has the rule and the counts."""
    packer = Packer(length, open_rows=open_rows)
    for document in documents:
        yield from packer.add(document, too_long=too_long)
    yield from packer.finish()


def unpack(row: Row) -> list[Document]:
    """Returns the documents of a row in order: the inverse of packing."""
    edges = np.flatnonzero(np.diff(row.segments, prepend=0, append=0))
    return [
        Document(row.ids[start:stop], row.loss_mask[start:stop])
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
        if row.segments[start] > 0
    ]


def document_to_pieces(document: Document, *, length: int) -> list[Document]:
    """Cuts a document every `length` ids; a document that fits is its own only piece."""
    if len(document) <= length:
        return [document]
    return [
        Document(document.ids[at : at + length], document.loss_mask[at : at + length])
        for at in range(0, len(document), length)
    ]


def _join(documents: list[Document], length: int) -> Row:
    ids, segments, positions = (np.zeros(length, np.int32) for _ in range(3))
    loss_mask = np.zeros(length, bool)
    at = 0
    for number, document in enumerate(documents, 1):
        here = slice(at, at + len(document))
        ids[here], loss_mask[here] = document.ids, document.loss_mask
        segments[here], positions[here] = number, np.arange(len(document))
        at += len(document)
    return Row(ids, segments, positions, loss_mask)
