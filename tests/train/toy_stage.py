"""A small stage for the tests of the loop; as a script, `toy_stage.py WORKDIR`, it trains."""

import logging
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.train.loop import TrainConfig, fit
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.train.stage import Evaluation, LossOutput, Stage

ROWS = 8
CONFIG = TrainConfig(
    total_steps=24,
    optimizer=OptimizerConfig(peak=3e-2, warmup_steps=4),
    log_every_steps=4,
    save_every_steps=5,
)


def init(key):
    """Waves whose phase is the key's: random numbers take most of the time to compile."""
    phase = jax.random.key_data(key)[-1].astype(jnp.float32)

    def waves(*shape):
        return jnp.sin(phase + 1.7 * jnp.arange(np.prod(shape), dtype=jnp.float32) ** 1.5).reshape(
            shape
        )

    params = {
        "up": waves(8, 16),
        "norms": {0: {"scale": jnp.ones(16)}},
        "down": waves(16, 4) / 4,
    }
    return params, {"mean": jnp.zeros(4)}


AXES = {"up": ("embed", "mlp"), "norms": {0: {"scale": ("mlp",)}}, "down": ("mlp", "embed")}


def loss(params, variables, batch, key):
    """Weighted squared error with noise from the key; the weights are ragged."""
    hidden = jnp.tanh(batch["x"] @ params["up"]) * params["norms"][0]["scale"]
    y = hidden @ params["down"] + batch["noise"] * jax.random.uniform(key, (4,))
    errors = jnp.square(y - batch["y"]).mean(-1)
    weight = batch["weight"]
    right = (errors < 0.5) * weight
    return LossOutput(
        (errors * weight).sum(),
        weight.sum(),
        {"near": (right.sum(), weight.sum())},
        (y.sum(0), jnp.float32(len(y))),
    )


def finish(variables, statistics):
    total, rows = statistics
    return {"mean": 0.9 * variables["mean"] + 0.1 * total / rows}


def batch_of(index: int, *, noise: float = 0.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(index)
    x = random.normal(size=(ROWS, 8)).astype(np.float32)
    return {
        "x": x,
        "y": x[:, :4],
        "weight": random.integers(0, 4, ROWS).astype(np.float32),
        "noise": np.full((ROWS, 1), noise, np.float32),
    }


def batches(rows_seen: int) -> Iterator[dict[str, np.ndarray]]:
    index = rows_seen // ROWS
    while True:
        yield batch_of(index, noise=0.1)
        index += 1


def make_stage(**changes) -> Stage:
    held_out = Evaluation("held_out", 6, lambda state: {"sum": float(state.params["up"].sum())})
    given = dict(
        name="toy",
        init=init,
        axes=AXES,
        loss=loss,
        finish=finish,
        batches=batches,
        evals=(held_out,),
        identity={"vocabulary": "v1"},
    )
    return Stage(**{**given, **changes})


def assert_same(first, second) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(second))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    fit(make_stage(), CONFIG, sys.argv[1])
    assert not {"tensorflow", "seqio", "grain"} & sys.modules.keys()
    print("finished")
