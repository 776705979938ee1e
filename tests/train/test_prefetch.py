"""Items in order, the source's own errors, and no thread left behind."""

import itertools
import threading
import time

import pytest

from speechlm_jax.train.prefetch import Prefetch


def test_items_keep_their_order_and_end():
    with Prefetch(iter(range(100)), depth=3) as items:
        assert list(items) == list(range(100))


def test_an_error_comes_where_its_item_would_have():
    def source():
        yield 1
        raise OSError("shard 7 is gone")

    with Prefetch(source()) as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="shard 7"):
            next(items)


def test_it_reads_ahead_but_not_without_bound():
    read = []
    source = (read.append(i) or i for i in itertools.count())
    with Prefetch(source, depth=2) as items:
        next(items)
        time.sleep(0.1)
        assert 2 <= len(read) <= 5
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
