"""Rows of unlike length in batches: answers in order, padding never read, few static shapes."""

import numpy as np
import pytest

from speechlm_jax.padding import pad_rows, round_up, run_in_batches

RANDOM = np.random.default_rng(0)
ROWS = [RANDOM.integers(1, 100, n).tolist() for n in (5, 0, 17, 3, 16, 9, 1, 33, 8, 2, 20)]


def recorded(asked, *, padding=0):
    """Answers with a row's sum; what lies behind its length is overwritten first."""

    def run(numbers, padded, lengths):
        asked.append((numbers, padded.copy(), lengths))
        padded = np.where(np.arange(padded.shape[1]) < lengths[:, None], padded, padding)
        return [row[:length].sum() for row, length in zip(padded, lengths, strict=True)]

    return run


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("kinds", [None, [i % 2 for i in range(len(ROWS))]])
@pytest.mark.parametrize(("batch_size", "multiple"), [(1, 1), (3, 8), (4, 16), (64, 32)])
def test_answers_keep_the_order_of_the_rows(batch_size, multiple, kinds, by_length):
    asked = []
    options = {"batch_size": batch_size, "multiple": multiple, "kinds": kinds}
    answers = run_in_batches(ROWS, recorded(asked, padding=7), by_length=by_length, **options)
    assert answers == [sum(row) for row in ROWS]
    met = set()
    for numbers, padded, lengths in asked:
        assert padded.shape[0] == len(lengths) == len(numbers) == batch_size
        assert padded.shape[1] == round_up(max(1, int(lengths.max())), multiple)
        for number, row, length in zip(numbers, padded, lengths, strict=True):
            assert row[:length].tolist() == ROWS[number] and not row[length:].any()
        assert kinds is None or len({kinds[number] for number in numbers}) == 1
        met |= set(numbers.tolist())
    assert met == set(range(len(ROWS)))


def test_rows_of_like_length_come_together_and_others_as_they_are_given():
    sizes = {}
    for by_length in (False, True):
        asked = []
        run_in_batches(ROWS, recorded(asked), batch_size=4, multiple=8, by_length=by_length)
        sizes[by_length] = [padded.shape[1] for _, padded, _ in asked]
        order = [n for numbers, _, _ in asked for n in numbers][: len(ROWS)]
        given = [*range(len(ROWS))]
        assert order == (sorted(given, key=lambda i: len(ROWS[i])) if by_length else given)
    assert sizes == {False: [24, 40, 24], True: [8, 16, 40]}


def test_a_bucket_of_padded_lengths_has_one_static_shape():
    buckets, asked = [round_up(len(row), 8) for row in ROWS], []
    run_in_batches(ROWS, recorded(asked), batch_size=2, multiple=8, kinds=buckets)
    for numbers, padded, _ in asked:
        (bucket,) = {buckets[number] for number in numbers}
        assert padded.shape == (2, max(8, bucket))
    assert len({padded.shape for _, padded, _ in asked}) == len({max(8, b) for b in buckets})


def test_the_last_batch_is_filled_with_its_own_rows():
    asked = []
    run_in_batches(ROWS[:5], recorded(asked), batch_size=4, multiple=1)
    assert [numbers.tolist() for numbers, _, _ in asked] == [[0, 1, 2, 3], [4, 4, 4, 4]]


def test_rows_of_frames_keep_their_width_and_dtype():
    mels = [RANDOM.normal(size=(n, 3)) for n in (4, 2)]
    seen = []

    def run(numbers, padded, lengths):
        seen.append((padded.shape, padded.dtype))
        return padded

    outputs = run_in_batches(mels, run, batch_size=2, multiple=6, dtype=np.float32)
    assert seen == [((2, 6, 3), np.float32)]
    for mel, output in zip(mels, outputs, strict=True):
        np.testing.assert_array_equal(output[: len(mel)], mel.astype(np.float32))


def test_no_rows_run_nothing():
    assert run_in_batches([], lambda *_: [], batch_size=2, multiple=2) == []


def test_padding_keeps_rows_and_refuses_what_is_too_long():
    padded, lengths = pad_rows([np.array([1, 2]), np.array([3])], 3)
    assert padded.tolist() == [[1, 2, 0], [3, 0, 0]] and lengths.tolist() == [2, 1]
    with pytest.raises(ValueError, match="does not fit"):
        pad_rows([np.arange(4)], 3)


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_round_up(number, expected):
    assert round_up(number, 8) == expected
