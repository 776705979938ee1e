"""Inputs are read ahead in order, within a bound, and errors come where they belong."""

import threading
import time

import pytest

from speechlm_jax.jobs.ahead import PARTS, ReadAhead


def parts(number):
    for part in range(number % 5):
        yield number, part
    if number == 13:
        raise ValueError("thirteen")


def test_inputs_and_parts_come_in_order_and_an_error_with_its_input():
    with ReadAhead(parts, iter(range(30)), workers=3, ahead=5) as ahead:
        for number in range(30):
            assert ahead.has_more
            one, its = ahead.take()
            assert one == number
            if number == 13:
                with pytest.raises(ValueError, match="thirteen"):
                    list(its)
            else:
                assert list(its) == [(number, part) for part in range(number % 5)]
        assert not ahead.has_more


def test_no_more_is_read_than_is_allowed():
    read, begun = [], []

    def long(number):
        begun.append(number)
        for part in range(100):
            read.append((number, part))
            yield part

    inputs = iter(range(1_000))
    with ReadAhead(long, inputs, workers=2, ahead=4) as ahead:
        assert ahead.has_more
        until = time.monotonic() + 20
        while len(read) < 2 * (PARTS + 1) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        assert sorted(begun) == [0, 1] and len(read) == 2 * (PARTS + 1)
        assert next(inputs) == 4
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
