"""The solver against a closed form; what a patch may see; patches and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.nn.attention import whole
from speechlm_jax.speech_decoder.flow import SIGMA_MIN, Flow
from speechlm_jax.speech_decoder.stage import functional

CODES = jnp.array([[1, 2, 3, 4, 5, 6]])
LENGTHS, VOICES = jnp.array([6]), jnp.array([2])


@pytest.fixture(scope="module")
def flow(config, params):
    return functional(config).bind(params)


@pytest.fixture(scope="module")
def noise():
    return jax.random.normal(jax.random.key(0), (1, 12, 10))  # 2 patches a code, 2 x 5 mels each


@pytest.mark.parametrize("steps", [1, 7])
def test_a_constant_field_is_integrated_exactly(flow, noise, monkeypatch, steps):
    drift = jax.random.normal(jax.random.key(1), noise.shape)
    monkeypatch.setattr(Flow, "velocity", lambda self, x, time, condition, layout: drift)
    mel = flow.codes_to_mel(CODES, LENGTHS, VOICES, noise, steps=steps)
    np.testing.assert_allclose(flow.patches(mel), noise + drift, atol=1e-4)


def test_the_velocity_is_that_of_the_straight_path_to_the_estimate(flow, noise, monkeypatch):
    clean = jax.random.normal(jax.random.key(2), noise.shape)
    monkeypatch.setattr(Flow, "estimate", lambda self, x, time, condition, layout: clean)

    def path(time):
        return (1 - (1 - SIGMA_MIN) * time) * noise + time * clean

    for time in (0.0, 0.4, 0.9):
        at = jnp.full(1, time)
        velocity = flow.velocity(path(time), at, jnp.zeros((1, 12, 8)), whole(LENGTHS * 2, 12))
        np.testing.assert_allclose(
            velocity, jax.jvp(path, (time,), (1.0,))[1], rtol=1e-3, atol=1e-3
        )


def test_a_linear_field_is_integrated_on_the_cosine_schedule(flow, noise, monkeypatch):
    """dx/dt = a x + t by Euler steps from 1 - cos(pi/2 * i/n) to the next."""
    monkeypatch.setattr(
        Flow, "velocity", lambda self, x, time, condition, layout: -0.7 * x + time[:, None, None]
    )
    mel = flow.codes_to_mel(CODES, LENGTHS, VOICES, noise, steps=5)
    x = np.asarray(noise, np.float64)
    times = 1 - np.cos(np.pi / 2 * np.arange(6) / 5)
    for here, there in zip(times[:-1], times[1:], strict=True):
        x = x + (there - here) * (-0.7 * x + here)
    np.testing.assert_allclose(flow.patches(mel), x, atol=1e-4)


def test_the_same_noise_gives_the_same_mel_frames(flow, noise):
    solve = jax.jit(lambda noise, voices: flow.codes_to_mel(CODES, LENGTHS, voices, noise, steps=2))
    mel = solve(noise, VOICES)
    assert mel.shape == (1, 24, 5)
    np.testing.assert_array_equal(mel, solve(noise, VOICES))
    assert not np.allclose(mel, solve(noise[:, ::-1], VOICES))
    assert not np.allclose(mel, solve(noise, VOICES + 1))


def test_mel_frames_see_no_later_block_and_no_padding(flow, noise):
    """Blocks of 2 codes = 8 mel frames."""

    @jax.jit
    def solve(codes, length, noise):
        return flow.codes_to_mel(codes, length[None], VOICES, noise, steps=2)[0]

    mel = solve(CODES, jnp.int32(6), noise)
    later = solve(CODES.at[0, 2].set(9), jnp.int32(6), noise.at[0, 4:].add(1.0))
    np.testing.assert_array_equal(mel[:8], later[:8])
    own = solve(CODES.at[0, 1].set(9), jnp.int32(6), noise)
    assert (np.abs(mel - own).max(-1) > 0).all(), "a whole block sees its own codes"
    cut = solve(CODES.at[0, 3:].set(0), jnp.int32(3), noise.at[0, 6:].set(0.0))
    other = solve(CODES.at[0, 3:].set(7), jnp.int32(3), noise.at[0, 6:].set(5.0))
    np.testing.assert_array_equal(cut[:12], other[:12])


def test_patches_are_standardised_mel_frames(flow, config):
    mel = jax.random.normal(jax.random.key(2), (2, 8, 5))
    patches = flow.patches(mel)
    assert patches.shape == (2, 4, 10) and config.frames_per_patch == 2
    np.testing.assert_allclose(patches.reshape(2, 8, 5) * 2.0 + 0.5, mel, atol=1e-6)


def test_the_field_depends_on_the_time(flow, noise):
    layout = whole(LENGTHS * 2, 12)
    condition = flow.condition(CODES, LENGTHS, VOICES)
    early, late = (flow.velocity(noise, jnp.array([t]), condition, layout) for t in (0.1, 0.9))
    assert not np.allclose(early, late, atol=1e-3)


def test_axes_are_the_tree_of_the_parameters(config, params):
    axes = functional(config).axes
    structure = jax.tree.structure(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert structure == jax.tree.structure(params)
