"""What is planned is what is trained: one program, whether or not its arrays are there."""

import jax
from toy_stage import batch_of, make_stage

from speechlm_jax.sharding import MeshConfig, make_mesh, to_global
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.train.program import make_program
from speechlm_jax.train.state import StateConfig


def test_shapes_and_arrays_lower_to_the_same_program():
    program = make_program(
        make_stage(), make_mesh(MeshConfig(fsdp=2, tensor=2)), num_microbatches=2, total_steps=10,
        optimizer=OptimizerConfig(warmup_steps=2), state=StateConfig(skip_above=3.0),
    )  # fmt: skip
    batch = batch_of(0)
    with jax.set_mesh(program.mesh):
        rows, key = to_global(batch, mesh=program.mesh), jax.random.key(3)
        trained = program.step.lower(program.init(3), rows, key).as_text()
    assert program.lower(batch).as_text() == trained
