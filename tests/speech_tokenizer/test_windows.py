"""Windows cover a recording once, whatever blocks it comes in."""

import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.speech_tokenizer.windows import WindowConfig, Windows


@pytest.fixture(scope="module")
def sizes(config):
    """Windows of 2 s that share 0.32 s (four codes)."""
    return Windows.of(WindowConfig(2.0, 0.32), config)


@pytest.mark.parametrize("samples", [0, 1, 31_999, 32_000, 32_001, 58_880, 58_881, 90_000])
def test_every_sample_is_in_one_window_after_its_context(sizes, config, samples):
    wav = np.arange(samples, dtype=np.float32)
    windows = list(sizes.cut([wav[:7], wav[7:50_000], wav[50_000:]]))
    context = sizes.context_samples
    np.testing.assert_array_equal(
        np.concatenate([windows[0], *(window[context:] for window in windows[1:])]), wav
    )
    for before, after in zip(windows, windows[1:], strict=False):
        assert len(before) == sizes.samples and len(after) > context
        np.testing.assert_array_equal(after[:context], before[-context:])
    (whole,) = Windows.of(WindowConfig(10.0), config).cut([wav])
    np.testing.assert_array_equal(whole, wav)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": 4.0, "context_seconds": 4.0}, "give less than seconds"),
        ({"seconds": 2.005}, "no whole number of mel frames of 0.01 s; give 2 or 2.01"),
        ({"seconds": 2.0, "context_seconds": 0.1}, "no whole number of codes of 0.08 s"),
        ({"seconds": 0.05}, "shorter than one code"),
    ],
)
def test_windows_that_cannot_be_are_refused(config, given, said):
    with pytest.raises(UserError, match=said):
        Windows.of(WindowConfig(**given), config)
