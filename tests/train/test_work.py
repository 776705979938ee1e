"""Work against counts by hand and published figures; shares of time add up."""

import time

import numpy as np
import pytest

from speechlm_jax.train.goodput import Goodput
from speechlm_jax.train.work import PEAK_FLOPS, FlopCount, document_lengths, packed_work, rates


def test_documents_are_counted_apart_and_padding_not_at_all():
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0] * 6])
    assert sorted(document_lengths(segments)) == [2, 3, 6]
    work = packed_work(1000, layers=2, heads=3, head_dim=4)({"segments": segments})
    pairs = 9 + 4 + 36
    assert work.tokens == 11
    assert work.flops_full == 6 * 1000 * 11 + 12 * 2 * 3 * 4 * pairs
    assert work.flops_causal == 6 * 1000 * 11 + 6 * 2 * 3 * 4 * pairs
    assert work + work == work.times(2)


def test_mfu_is_that_of_a_published_run():
    """Llama3.1-8B, length 8192, on v6e-256: 7,207 tokens/s/chip, MFU 45.5% full, 40.4% causal.

    (MaxText, docs/reference/models/tiering.md.)
    """
    embed, mlp, vocab, layers = 4096, 14336, 128256, 32
    weights = layers * (2 * embed * embed + 2 * embed * 1024 + 3 * embed * mlp) + embed * vocab
    measure = packed_work(weights, layers=layers, heads=32, head_dim=128)
    work = measure({"segments": np.ones((1, 8192), np.int32)})
    figures = rates(work, 8192 / 7207, chips=1, device_kind="TPU v6 lite")
    assert figures["tokens_per_second_per_chip"] == pytest.approx(7207)
    assert figures["mfu_full"] == pytest.approx(0.455, abs=0.002)
    assert figures["mfu_causal"] == pytest.approx(0.404, abs=0.002)


def test_an_unknown_chip_has_no_mfu():
    figures = rates(FlopCount(100.0, 1e9, 1e9), 2.0, chips=4, device_kind="cpu")
    assert figures == {"tokens_per_second": 50.0, "tokens_per_second_per_chip": 12.5}
    assert "cpu" not in PEAK_FLOPS


def test_shares_of_time_go_on_from_where_the_run_was_saved():
    goodput = Goodput({"step_seconds": 3.0, "input_seconds": 1.0, "wall_seconds": 99.0})
    with goodput.of("start"):
        time.sleep(0.01)
    shares = goodput.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["goodput/step"] == pytest.approx(0.75, rel=0.05)
    assert goodput.seconds["start_seconds"] >= 0.01
    with pytest.raises(RuntimeError), goodput.of("evaluate"):
        raise RuntimeError
    assert goodput.seconds["evaluate_seconds"] > 0
