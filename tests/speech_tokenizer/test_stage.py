"""CTC against all alignments; sums by clip; a sharded update equals an unsharded one."""

import dataclasses
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from speechlm_jax.sharding import MeshConfig
from speechlm_jax.speech_tokenizer.reading import collapse
from speechlm_jax.speech_tokenizer.stage import SpeechTokenizerLoss, ctc_loss, make_stage

BLANK = 3


def all_alignments(logits, label):
    """-log of the summed probability of every path that says `label`."""
    logprobs = log_softmax(logits, axis=-1)
    paths = [
        sum(logprobs[time, symbol] for time, symbol in enumerate(path))
        for path in product(range(4), repeat=len(logits))
        if collapse(np.array(path), blank=BLANK) == label
    ]
    return -logsumexp(paths) if paths else None


def test_ctc_is_the_sum_over_all_alignments():
    labels = [[0, 1], [2, 2], [1], [0, 1, 2]]
    times = [4, 5, 3, 5]
    logits = np.random.default_rng(0).normal(size=(4, 5, 4)).astype(np.float32)
    padded = np.array([[*label, *[0] * (3 - len(label))] for label in labels])
    sizes = np.array([len(label) for label in labels])
    got = ctc_loss(*map(jnp.array, (logits, np.array(times), padded, sizes)), blank=BLANK)
    for row, label in enumerate(labels):
        expected = all_alignments(logits[row, : times[row]], label) / len(label)
        np.testing.assert_allclose(got[row], expected, rtol=1e-4)


def test_labels_that_do_not_fit_cost_nothing():
    """Three labels in two frames; a repeated label needs a blank between; no label at all."""
    logits = jnp.array(np.random.default_rng(1).normal(size=(3, 2, 4)), jnp.float32)
    labels = jnp.array([[0, 1, 2], [1, 1, 0], [0, 0, 0]])
    times, sizes = jnp.array([2, 2, 2]), jnp.array([3, 2, 0])

    def total(logits):
        return ctc_loss(logits, times, labels, sizes, blank=BLANK)[:2].sum()

    value, gradient = jax.value_and_grad(total)(logits)
    assert value == 0 and not np.any(gradient)
    assert np.isfinite(ctc_loss(logits, times, labels, sizes, blank=BLANK)).all()


def test_a_long_clip_counts_however_large_its_loss():
    logits = jnp.zeros((1, 2000, 40)).at[:, :, BLANK].set(20.0)
    labels = jnp.tile(jnp.array([0, 1]), 500)[None]
    loss = ctc_loss(logits, jnp.array([2000]), labels, jnp.array([1000]), blank=BLANK)
    assert loss[0] > 10, "1,000 labels that the logits call blank"


def batch_of(rows, make_mel, *, real):
    """`real` clips of 33 to 48 mel frames, the other rows padding (text length 0)."""
    random = np.random.default_rng(0)
    counts = (np.arange(rows) < real).astype(np.int32)
    return {
        "mel": np.array(make_mel(48, batch=rows)),
        "mel_lengths": (33 + 5 * np.arange(rows) % 16) * counts,
        "text_ids": random.integers(0, 7, (rows, 3)).astype(np.int32),
        "text_lengths": (1 + np.arange(rows) % 3).astype(np.int32) * counts,
        "bytes": random.integers(97, 122, (rows, 4)).astype(np.int32),
        "byte_lengths": 4 * counts,
    }


@pytest.fixture(scope="module")
def stage(config, params, variables):
    made = make_stage(config, SpeechTokenizerLoss(), lambda rows: iter(()))
    return dataclasses.replace(made, init=lambda key: (params, variables))


@pytest.fixture(scope="module")
def loss(stage, params, variables):
    """loss(batch): the output for it as a whole batch."""

    def run(batch):
        key = jax.random.key(0)
        drawn = stage.prepare(params, variables, batch, key)
        return stage.loss(params, variables, {**batch, **drawn}, key)

    return jax.jit(run)


def test_padding_rows_count_for_nothing(loss, make_mel):
    batch = batch_of(4, make_mel, real=3)
    other = {**batch, "mel": batch["mel"] + 7.0 * (np.arange(4) == 3)[:, None, None]}
    outputs = [loss(batch), loss(other)]
    assert outputs[0].weight_sum == 3
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_the_total_is_the_weighted_sum_of_its_parts(stage, loss, variables, make_mel):
    out = loss(batch_of(4, make_mel, real=4))
    weights = dataclasses.asdict(SpeechTokenizerLoss())
    assert set(out.metrics) == set(weights)
    expected = sum(weights[name] * part[0] for name, part in out.metrics.items())
    np.testing.assert_allclose(out.loss_sum, expected, rtol=1e-5)
    after = stage.finish(variables, out.statistics)["quantizer"]
    assert after["updates"] == 1 and after.keys() == variables["quantizer"].keys()


def commitment_alone(stage):
    """The stage with a loss that no text is needed for: it compiles in a tenth of the time."""

    def loss(*given):
        out = stage.loss(*given)
        return out._replace(loss_sum=out.metrics["commitment"][0], metrics={})

    return dataclasses.replace(stage, loss=loss)


@pytest.fixture(scope="module")
def moved(stage, make_mel, one_update):
    """moved(num_devices, num_microbatches): the quantizer after a step."""
    batch = batch_of(16, make_mel, real=14)

    def run(devices, microbatches):
        state, _ = one_update(
            commitment_alone(stage), batch, MeshConfig(fsdp=devices), num_microbatches=microbatches
        )
        return jax.device_get(state.variables["quantizer"])

    return run


@pytest.fixture(scope="module")
def moved_at_once(moved):
    return moved(1, 1)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("devices", "microbatches"),
    [(4, 2), *(pytest.param(*x, marks=SLOW) for x in ((1, 2), (1, 4), (4, 1), (4, 4)))],
)
def test_the_codebook_moves_alike_however_a_batch_is_split(
    moved, moved_at_once, variables, devices, microbatches
):
    """Restarts included: all but a few of the 32 entries are chosen by no frame."""
    split = moved(devices, microbatches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split, moved_at_once)
    restarted = moved_at_once["ema_count"] == 1
    assert 0 < restarted.sum() < len(restarted) and split["updates"] == 1


def test_a_clip_that_is_not_finite_moves_nothing(stage, make_mel, variables, one_update):
    batch = batch_of(16, make_mel, real=14)
    batch["mel"][3, 5] = np.nan
    state, metrics = one_update(commitment_alone(stage), batch, MeshConfig(fsdp=1))
    assert metrics["skipped_steps"][0] == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.variables), variables)


@pytest.mark.slow  # two whole training steps to compile; tests/lm does it for the language model
def test_sharded_equals_unsharded(stage, make_mel, one_update):
    batch = batch_of(4, make_mel, real=3)
    plain, sharded = (
        jax.device_get(one_update(stage, batch, mesh_config))
        for mesh_config in (MeshConfig(fsdp=1), MeshConfig(fsdp=2, tensor=2))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), plain, sharded
    )
