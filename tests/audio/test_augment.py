"""Variation is a function of (seed, row); each kind does to sounds what its docstring says."""

import dataclasses

import librosa
import numpy as np
import pytest

from speechlm_jax.audio.augment import (
    AugmentConfig,
    Augmenter,
    add_noise,
    mask,
    smooth_curve,
    stretch,
    vary,
    warp,
)
from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.errors import UserError

MEL = MelConfig()
ALL = AugmentConfig(
    max_joined=3,
    max_gap_frames=6,
    warp_ratio=0.2,
    stretch_ratio=0.2,
    gain_db=10.0,
    colour_db=10.0,
    noise_db=40.0,
    num_masks=1,
    mask_mels=8,
    mask_frames=8,
)
SPEAKERS = ["ann", "bob"] * 5


def clip(number: int) -> np.ndarray:
    """A clip that can be told from all others: its values tell its number."""
    rng = np.random.default_rng(number)
    return (rng.uniform(0.0, 0.05, (20 + number, 80)) + number / 10).astype(np.float32)


def rows(config: AugmentConfig, numbers=range(40), limit: int = 90):
    vary_clip = Augmenter(config, MEL, clip, SPEAKERS)
    return [vary_clip(n % 10, row=n, limit=limit) for n in numbers]


def tone(hz: float) -> np.ndarray:
    return wav_to_mel(0.3 * np.sin(2 * np.pi * hz * np.arange(8000) / 16_000).astype(np.float32))


def test_a_row_is_a_function_of_seed_and_row_number():
    first = rows(ALL)
    again = [*reversed(rows(ALL, range(39, -1, -1)))]
    for one, two in zip(first, again, strict=True):
        assert one.numbers == two.numbers
        np.testing.assert_array_equal(one.mel, two.mel)
    other = rows(dataclasses.replace(ALL, seed=1))
    assert any(a.numbers != b.numbers for a, b in zip(first, other, strict=True))
    # the same clip in another row is another row
    vary_clip = Augmenter(ALL, MEL, clip, SPEAKERS)
    mels = [vary_clip(0, row=n, limit=90).mel for n in (0, 10)]
    assert mels[0].shape != mels[1].shape or not np.array_equal(*mels)


def test_nothing_is_varied_by_default():
    for number, row in enumerate(rows(AugmentConfig(), range(10))):
        assert row.numbers == (number,)
        np.testing.assert_array_equal(row.mel, clip(number))


def test_joined_rows_hold_whole_clips_of_one_speaker_and_fit():
    config = AugmentConfig(max_joined=4, max_gap_frames=5)
    joined = rows(config)
    for number, row in enumerate(joined):
        assert number % 10 in row.numbers and len(row.mel) <= 90
        assert len({SPEAKERS[n] for n in row.numbers}) == 1
        said = np.floor(10 * row.mel.mean(axis=1))
        for n in set(row.numbers):
            # gaps have the values of the quietest clip, so that one may look longer
            frames, least = int(np.sum(said == n)), row.numbers.count(n) * (20 + n)
            assert frames == least or n == min(row.numbers) and frames > least
    assert {len(row.numbers) for row in joined} == {1, 2, 3, 4}
    assert min(np.bincount([row.numbers.index(n % 10) for n, row in enumerate(joined)])) > 0


def test_trimming_cuts_ends_alone():
    trimmed = rows(AugmentConfig(trim_frames=4), range(100))
    lost = []
    for number, row in enumerate(trimmed):
        whole = clip(number % 10)
        first = next(i for i in range(5) if np.array_equal(whole[i], row.mel[0]))
        np.testing.assert_array_equal(row.mel, whole[first : first + len(row.mel)])
        lost += [first, len(whole) - first - len(row.mel)]
    assert set(lost) == {0, 1, 2, 3, 4}


def test_clips_that_do_not_fit_are_left_out():
    assert all(
        row.numbers == (n,)
        for n, row in enumerate(rows(AugmentConfig(max_joined=4), range(10), 30))
    )


def test_a_stretched_clip_fits_the_limit():
    config = AugmentConfig(stretch_ratio=0.5)
    lengths = np.array([len(row.mel) for row in rows(config, limit=30)])
    assert lengths.max() == 30 and lengths.min() < 15


@pytest.mark.parametrize("frames", [10, 17, 34, 50])
def test_stretch_keeps_ends_and_straight_lines(frames):
    line = np.linspace(0, 1, 25, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    np.testing.assert_allclose(
        stretch(line, frames=frames)[:, 0], np.linspace(0, 1, frames), atol=1e-6
    )


@pytest.mark.parametrize("factor", [0.85, 0.95, 1.1, 1.2])
@pytest.mark.parametrize("hz", [800.0, 2000.0, 4500.0])
def test_warp_moves_a_tone_to_its_scaled_frequency(factor, hz):
    moved = warp(tone(hz), MEL, factor=factor).mean(axis=0)
    centres = librosa.mel_frequencies(82, fmin=0, fmax=8000)[1:-1]
    expected = int(np.argmin(np.abs(centres - hz * factor)))
    assert abs(int(np.argmax(moved)) - expected) <= 1


def test_warp_by_one_is_nothing():
    mel = clip(3)
    np.testing.assert_allclose(warp(mel, MEL, factor=1.0), mel, atol=1e-4)


def test_noise_has_the_level_that_it_is_given_and_spares_what_is_louder():
    rng = np.random.default_rng(0)
    quiet = np.full((400, 80), -1.5)
    noisy = add_noise(quiet, level=-0.5, rng=rng)
    power = 10 ** (4 * noisy - 4)
    assert np.log10(power.mean()) == pytest.approx(4 * -0.5 - 4, abs=0.02)
    loud = np.full((10, 80), 1.0)
    np.testing.assert_allclose(add_noise(loud, level=-0.5, rng=rng), loud, atol=1e-4)


def test_gain_and_colour_are_in_decibels():
    rng = np.random.default_rng(0)
    mel = np.full((5, 80), 0.5, np.float32)
    gains = [vary(mel, AugmentConfig(gain_db=20.0), MEL, rng)[0, 0] - 0.5 for _ in range(200)]
    # 20 dB are 2 in log10 of the power, a half in log-mel
    assert -0.5 <= min(gains) < -0.45 and 0.45 < max(gains) <= 0.5
    coloured = vary(mel, AugmentConfig(colour_db=20.0), MEL, rng)
    assert np.ptp(coloured, axis=0).max() < 1e-6 and 0.05 < np.ptp(coloured[0]) <= 1.0
    np.testing.assert_allclose(smooth_curve(np.array([0.0, 1.0]), mels=3), [0, 0.5, 1])


@pytest.mark.parametrize("floor", ["clip", "fixed"])
def test_whispers_floor_is_kept(floor):
    mel = np.linspace(-1.0, 1.0, 80, dtype=np.float32)[None].repeat(10, axis=0)
    config = AugmentConfig(colour_db=40.0)
    varied = [
        vary(mel, config, MelConfig(floor=floor), np.random.default_rng(i)) for i in range(20)
    ]
    widest = max(float(np.ptp(v)) for v in varied)
    assert (widest <= 2.0001) == (floor == "clip")


def test_masks_are_bands_of_the_mean():
    rng = np.random.default_rng(0)
    for _ in range(30):
        mel = rng.normal(size=(40, 80))
        changed = mask(mel, mels=8, frames=6, rng=rng) != mel
        assert changed.all(axis=0).sum() <= 8 and changed.all(axis=1).sum() <= 6
        cross = changed.all(axis=0)[None] | changed.all(axis=1)[:, None]
        np.testing.assert_array_equal(changed, cross)


@pytest.mark.parametrize("wrong", [{"max_joined": 0}, {"warp_ratio": 1.0}, {"gain_db": -3.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError):
        AugmentConfig(**wrong)
