"""Properties of speechlm_jax.evals.codebook."""

import numpy as np
import pytest

from speechlm_jax.evals.codebook import code_counts, codebook_use, perplexity_figure, usage_items
from speechlm_jax.evals.items import figure_from_items


def test_uniform_codes_have_full_perplexity():
    counts = code_counts([list(range(8)), np.arange(8)], codebook_size=16)
    assert counts.tolist() == [2] * 8 + [0] * 8
    use = codebook_use(counts)
    assert use.codebook_usage == 0.5
    assert use.codebook_perplexity == pytest.approx(8)
    assert figure_from_items(usage_items("u", counts)).value == 0.5


def test_perplexity_against_its_definition():
    counts = np.array([5, 3, 0, 2])
    share = np.array([0.5, 0.3, 0.2])
    expected = np.prod(share**-share)
    assert codebook_use(counts).codebook_perplexity == pytest.approx(expected)


def test_no_codes():
    use = codebook_use(code_counts([], codebook_size=4))
    assert (use.codebook_usage, use.codebook_perplexity) == (0, 0)


def test_perplexity_interval_holds_the_value():
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 32, 20) for _ in range(60)]
    figure = perplexity_figure(codes, codebook_size=64, resamples=300)
    assert figure.low <= figure.value <= figure.high
    assert figure.value == pytest.approx(32, abs=2)
    assert figure.count == 60


def test_codes_outside_the_codebook():
    with pytest.raises(ValueError, match="outside"):
        code_counts([[4]], codebook_size=4)
