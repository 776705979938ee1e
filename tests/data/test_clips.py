"""The stream of clips: every clip once an epoch, whole after a restart, the same for any hosts."""

from itertools import islice

import numpy as np
import pytest

from speechlm_jax.data.clips import BucketConfig, BucketedClips, clip_batches
from speechlm_jax.errors import UserError

CONFIG = BucketConfig(batch_size=4, edges=(30, 60), seed=1)
LENGTHS = [*range(10, 62)]  # the last is longer than every bucket


def stream(**hosts):
    def collate(edge, numbers, rows):
        return {"edge": np.full(len(numbers), edge), "numbers": numbers, "rows": rows}

    return clip_batches(BucketedClips(LENGTHS, CONFIG), collate, **hosts)


def test_an_epoch_visits_every_clip_that_fits_in_its_bucket():
    clips = BucketedClips(LENGTHS, CONFIG)
    assert clips.left_out == 1
    for epoch in range(2):
        first = epoch * clips.batches_per_epoch
        batches = [clips[first + i] for i in range(clips.batches_per_epoch)]
        assert {int(n) for _, numbers in batches for n in numbers} == set(range(51))
        for edge, numbers in batches:
            assert len(numbers) == 4
            assert all((30 if LENGTHS[n] <= 30 else 60) == edge for n in numbers)
    orders = [
        np.concatenate([clips[i][1] for i in range(k, k + clips.batches_per_epoch)])
        for k in (0, clips.batches_per_epoch)
    ]
    assert not np.array_equal(*orders)


def test_row_numbers_count_the_stream_and_a_restart_goes_on():
    whole = list(islice(stream()(0), 30))
    np.testing.assert_array_equal(np.concatenate([b["rows"] for b in whole]), np.arange(120))
    rest = list(islice(stream()(40), 20))
    for one, two in zip(whole[10:], rest, strict=True):
        for field in one:
            np.testing.assert_array_equal(one[field], two[field])


def test_hosts_share_a_batch():
    alone = list(islice(stream()(0), 10))
    parts = [list(islice(stream(process_index=i, process_count=2)(0), 10)) for i in range(2)]
    for whole, *halves in zip(alone, *parts, strict=True):
        for field in whole:
            np.testing.assert_array_equal(whole[field], np.concatenate([h[field] for h in halves]))


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(UserError, match="does not divide by the 3 hosts"):
        stream(process_count=3)


@pytest.mark.parametrize("lengths", [[], [100, 200]])
def test_nothing_to_train_on_is_the_users_to_mend(lengths):
    with pytest.raises(UserError, match="clip"):
        BucketedClips(lengths, CONFIG)
