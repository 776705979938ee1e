"""Packing loses nothing, keeps documents apart, and unpacking is its inverse."""

import grain
import numpy as np
import pytest

from speechlm_jax.data.packing import Document, Packer, Row, document_to_pieces, pack, unpack


def make_documents(seed: int, count: int = 60, longest: int = 50) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [
        Document(rng.integers(0, 9, n).astype(np.int32), rng.random(n) < 0.7)
        for n in rng.integers(1, longest + 1, count)
    ]


def as_bag(documents: list[Document]) -> list[tuple]:
    return sorted((tuple(d.ids.tolist()), tuple(d.loss_mask.tolist())) for d in documents)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("open_rows", [1, 3, 64])
def test_unpack_gives_back_every_document(seed, open_rows):
    documents = make_documents(seed, longest=70)  # some longer than a row
    rows = list(pack(documents, length=32, open_rows=open_rows))
    pieces = [piece for document in documents for piece in document_to_pieces(document, length=32)]
    assert as_bag([d for row in rows for d in unpack(row)]) == as_bag(pieces)


def test_rows_keep_documents_apart():
    for row in pack(make_documents(1), length=64):
        used = row.segments > 0
        assert not used[int(used.sum()) :].any(), "padding stands at the end only"
        assert not row.ids[~used].any() and not row.loss_mask[~used].any()
        for number, document in enumerate(unpack(row), 1):
            here = row.segments == number
            np.testing.assert_array_equal(row.positions[here], np.arange(len(document)))


def test_pieces_put_together_are_the_document():
    document = make_documents(3, count=1, longest=200)[0]
    pieces = document_to_pieces(document, length=16)
    np.testing.assert_array_equal(np.concatenate([p.ids for p in pieces]), document.ids)
    assert all(len(piece) == 16 for piece in pieces[:-1])


def test_long_documents_are_dropped_or_split_and_counted():
    long, empty = (
        Document(np.arange(70, dtype=np.int32), np.ones(70, bool)),
        Document(np.zeros(0, np.int32), np.zeros(0, bool)),
    )
    packer = Packer(32)
    assert packer.add(long, too_long="drop") == [] and packer.finish() == []
    assert len(packer.add(long)) == 2 and len(packer.finish()) == 1
    packer.add(empty)
    counts = packer.counts
    assert (counts.dropped, counts.split, counts.empty) == (1, 1, 1)
    assert (counts.documents, counts.pieces, counts.tokens, counts.rows) == (1, 3, 70, 3)


def test_same_documents_give_the_same_rows_in_the_same_order():
    first, second = (list(pack(make_documents(5), length=64)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.segments, b.segments)


def test_fill_is_at_least_that_of_grains_packer():
    """Outside oracle: Grain's first fit with as many bins."""
    documents = make_documents(7, count=800, longest=60)
    source = grain.MapDataset.source([{"ids": d.ids} for d in documents])
    theirs = list(
        grain.experimental.FirstFitPackIterDataset(
            source.to_iter_dataset(grain.ReadOptions(num_threads=0)),
            length_struct={"ids": 128},
            num_packing_bins=16,
            shuffle_bins=False,
        )
    )
    ours = list(pack(documents, length=128, open_rows=16))
    assert len(ours) <= len(theirs)


def test_unpack_of_an_empty_row():
    zeros = np.zeros(8, np.int32)
    assert unpack(Row(zeros, zeros, zeros, np.zeros(8, bool))) == []
