"""Ratios of sums rather than means of ratios, and a run that only skips ends."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.train.interval import Interval, ratios


def metrics(loss=1.0, weight=1.0, skipped=0.0):
    return {
        "loss": (jnp.float32(loss), jnp.float32(weight)),
        "skipped_steps": (jnp.float32(skipped), jnp.float32(1)),
    }


def test_sums_are_divided_once():
    steps = [{"loss": (6.0, 3.0)}, {"loss": (2.0, 1.0), "rare": (1.0, 4.0)}, {"loss": (0.0, 4.0)}]
    assert ratios(steps) == {"loss": 1.0, "rare": 0.25}
    assert ratios([{"loss": (0.0, 0.0)}]) == {}


def test_rates_leave_evaluations_out():
    interval = Interval(10, "toy", max_skipped=3)
    began = time.perf_counter()
    interval.add(metrics(), rows=4)
    time.sleep(0.05)
    interval.leave_out(0.03)
    figures = interval.close(1)
    assert 0.02 <= figures["seconds_per_step"] <= time.perf_counter() - began - 0.03
    np.testing.assert_allclose(figures["rows_per_second"] * figures["seconds_per_step"], 4)


def test_only_skips_in_a_row_count():
    interval = Interval(10, "toy", max_skipped=3)
    for skipped in (1.0, 1.0, 0.0, 1.0):
        interval.add(metrics(skipped=skipped), rows=1)
    assert interval.close(4)["skipped_steps"] == 0.75
    interval.add(metrics(skipped=1.0), rows=1)
    interval.close(5)
    interval.add(metrics(skipped=1.0), rows=1)
    with pytest.raises(UserError, match="3 updates in a row up to step 6"):
        interval.close(6)
