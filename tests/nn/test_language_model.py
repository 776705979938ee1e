"""Packed rows equal lone documents; causality; the output layer tied or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.nn.attention import Layout, whole
from speechlm_jax.nn.language_model import functional
from speechlm_jax.nn.losses import packed_loss

DOCUMENTS = ([3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7])


def pack(documents, size):
    """One row: documents one after the other, then padding."""
    ids, segments, positions = (np.zeros((1, size), np.int32) for _ in range(3))
    at = 0
    for number, document in enumerate(documents, 1):
        place = slice(at, at + len(document))
        ids[0, place], segments[0, place] = document, number
        positions[0, place] = np.arange(len(document))
        at += len(document)
    return {
        "ids": ids,
        "segments": segments,
        "positions": positions,
        "loss_mask": np.ones((1, size), np.float32),
    }


@pytest.fixture(scope="module")
def loss_and_logits(config, params):
    @jax.jit
    def run(batch):
        model = functional(config).bind(params)
        layout = Layout(batch["segments"], batch["positions"])
        logits = model(batch["ids"], layout)
        lost = packed_loss(model.hidden(batch["ids"], layout), model.head_kernel, batch)
        return lost.loss_sum, lost.weight_sum, logits

    return run


def test_a_packed_row_equals_its_documents_alone(loss_and_logits):
    packed = loss_and_logits(pack(DOCUMENTS, 16))
    alone = [loss_and_logits(pack([document], 16)) for document in DOCUMENTS]
    np.testing.assert_allclose(packed[0], sum(one[0] for one in alone), rtol=1e-5)
    assert packed[1] == sum(one[1] for one in alone) == sum(len(d) - 1 for d in DOCUMENTS)
    at = 0
    for document, one in zip(DOCUMENTS, alone, strict=True):
        here = packed[2][0, at : at + len(document)]
        np.testing.assert_allclose(here, one[2][0, : len(document)], atol=1e-5)
        at += len(document)


def test_a_change_in_one_document_changes_nothing_in_its_neighbours(loss_and_logits):
    before = loss_and_logits(pack(DOCUMENTS, 16))[2]
    after = loss_and_logits(pack((DOCUMENTS[0], [9, 20, 6], DOCUMENTS[2]), 16))[2]
    changed = np.abs(before - after)[0, :14].max(-1) > 0  # what padding says is nobody's
    np.testing.assert_array_equal(np.flatnonzero(changed), [6, 7])


def test_logits_depend_on_no_later_id(model):
    """By gradient through the embedded ids."""
    layout = whole(jnp.array([6]), 6)
    x = model.embed(jnp.array([[3, 1, 4, 1, 5, 9]]))
    gradient = jax.jit(
        jax.jacrev(lambda x: model.logits(model.transformer(x, layout))[0].max(axis=-1))
    )(x)
    np.testing.assert_array_equal(np.abs(gradient).sum((1, 3)) > 0, np.tri(6, dtype=bool))


def test_embedded_ids_have_unit_variance_and_logits_are_float32(config, params):
    model = functional(dataclasses.replace(config, dtype="bfloat16")).bind(params)
    ids = jnp.arange(24)[None]
    embedded = model.embed(ids)
    assert embedded.dtype == jnp.bfloat16
    assert 0.8 < float(jnp.std(embedded.astype(jnp.float32))) < 1.2
    logits = jax.eval_shape(model, ids, whole(jnp.array([24]), 24))
    assert logits.shape == (1, 24, 24) and logits.dtype == jnp.float32


def test_a_tied_output_layer_is_the_embedding_table(config, params):
    tied = functional(dataclasses.replace(config, tied=True))
    assert set(params) - set(tied.axes) == {"head"}
    model = tied.bind({name: leaf for name, leaf in params.items() if name != "head"})
    x = jax.random.normal(jax.random.key(0), (1, 2, 16))
    np.testing.assert_allclose(model.logits(x), model.norm(x) @ params["embedding"].T, atol=1e-5)
