"""Seconds of a step add up over its sittings, also those that were killed."""

import time

import pytest

from speechlm_jax import artifacts
from speechlm_jax.quickstart import clock


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_sittings_add_up(tmp_path):
    for _ in range(2):
        with clock.timed(tmp_path, "codes"):
            burn(0.05)
    with clock.timed(tmp_path, "chat"):
        time.sleep(0.05)
    totals = clock.totals(tmp_path)
    assert totals["codes"]["sittings"] == 2 and totals["chat"]["sittings"] == 1
    assert totals["codes"]["cpu_seconds"] >= 0.1
    assert totals["chat"]["wall_seconds"] >= 0.05 > totals["chat"]["cpu_seconds"]


def test_a_killed_sitting_has_left_its_last_beat(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "BEAT_SECONDS", 0.01)
    with clock.timed(tmp_path, "tokenizer"):
        time.sleep(0.1)
        (record,) = tmp_path.glob("*.json")
        beaten = artifacts.read_json(record)
    assert beaten["step"] == "tokenizer" and 0 < beaten["wall_seconds"] <= 0.2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_step_that_fails_is_counted(tmp_path):
    with pytest.raises(RuntimeError), clock.timed(tmp_path, "codes"):
        raise RuntimeError
    assert clock.totals(tmp_path)["codes"]["sittings"] == 1


def test_no_records_no_steps(tmp_path):
    assert clock.totals(tmp_path / "timing") == {}
