"""A state is drawn as the stage draws it, split over the mesh, and its layout costs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from toy_stage import init, make_stage

from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.train.optimizer import OptimizerConfig, make_optimizer
from speechlm_jax.train.state import init_state, make_layout

OPTIMIZER = make_optimizer(OptimizerConfig(warmup_steps=0), total_steps=10)


def test_drawn_on_the_mesh_as_the_stage_draws():
    stage = make_stage()
    layout = make_layout(stage, OPTIMIZER, mesh=make_mesh(MeshConfig()))
    state = init_state(stage, OPTIMIZER, layout, seed=3)
    params, variables = init(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, params)
    assert jax.tree.structure(state.variables) == jax.tree.structure(variables)
    assert state.params["up"].sharding.shard_shape((8, 16)) == (2, 16)
    assert int(state.step) == 0


def test_the_layout_of_a_model_too_large_for_this_machine():
    def huge(key):
        return {"table": jnp.zeros((1 << 20, 1 << 20))}, {}

    stage = make_stage(init=huge, axes={"table": ("vocab", "embed")})
    layout = make_layout(stage, OPTIMIZER, mesh=make_mesh(MeshConfig(fsdp=2, tensor=2)))
    moment = optax.tree_utils.tree_get(layout.abstract.opt_state, "mu")["table"]
    assert moment.shape == (1 << 20, 1 << 20)
    assert moment.sharding.shard_shape(moment.shape) == (1 << 19, 1 << 19)
