"""Held-out loss is the stage's own, whatever the micro batches; each batch is a sign of life."""

import jax
import numpy as np
import pytest
from toy_stage import batch_of, loss, make_stage

from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.train.held_out import HeldOutRows, held_out
from speechlm_jax.train.stage import EvalState

MESH = MeshConfig(fsdp=2, tensor=2)


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_it_is_the_loss_of_all_rows(num_microbatches):
    params, variables = make_stage().init(jax.random.key(0))
    batches, signs = [batch_of(i) for i in range(3)], []
    mesh = make_mesh(MESH)
    rows = {"some": HeldOutRows(20, lambda: iter(batches))}
    evaluation = held_out(loss, rows, every_steps=5, mesh=mesh, num_microbatches=num_microbatches)
    with jax.set_mesh(mesh):
        figures = evaluation.run(EvalState(5, params, variables, lambda: signs.append(1)))
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    expected = loss(params, variables, whole, jax.random.key(0))
    np.testing.assert_allclose(figures["some"], expected.loss_sum / expected.weight_sum, rtol=1e-5)
    assert figures["some/rows"] == 20 and figures["some/tokens"] == expected.weight_sum
    assert len(signs) == 3, "a sign of life for each batch"


def test_a_micro_batch_is_what_the_model_sees():
    seen = []

    def spy(params, variables, batch, key):
        seen.append(batch["x"].shape)
        return loss(params, variables, batch, key)

    params, variables = make_stage().init(jax.random.key(0))
    rows = {"some": HeldOutRows(8, lambda: iter([batch_of(0)]))}
    evaluation = held_out(spy, rows, every_steps=5, mesh=make_mesh(MESH), num_microbatches=4)
    evaluation.run(EvalState(5, params, variables))
    assert set(seen) == {(2, 8)}
