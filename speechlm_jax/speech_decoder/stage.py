"""Training of the flow: regression of the clean ends of straight paths from noise to mel frames."""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.nn.attention import whole
from speechlm_jax.nn.param import Functional
from speechlm_jax.speech_decoder.flow import SIGMA_MIN, Flow, FlowConfig
from speechlm_jax.train.stage import Evaluation, LossOutput, Stage

ANY_VOICE_RATIO = 0.1  # fraction of rows whose voice is replaced by voice 0, which stands for any


def functional(config: FlowConfig) -> Functional:
    """Returns the flow as functions of its parameters."""
    return Functional(lambda rngs: Flow(config, rngs=rngs))


def make_stage(
    config: FlowConfig,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    *,
    evals: tuple[Evaluation, ...] = (),
    identity: dict[str, str] | None = None,
) -> Stage:
    """Returns the stage that trains a flow.

    Batches hold `mel` [batch, mel_frames, mels], `codes` [batch, frames] with `mel_frames =
    frames * mel_frames_per_code`, `code_lengths` [batch] and `voices` [batch] in 1 .. num_voices.
    """
    model = functional(config)

    def loss(
        params: PyTree, variables: PyTree, batch: Mapping[str, Array], key: Array
    ) -> LossOutput:
        flow = model.bind(params, variables)
        target = flow.patches(batch["mel"].astype(jnp.float32))
        noise_key, time_key, voice_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, target.shape)
        time = jax.random.uniform(time_key, target.shape[:1])
        hidden = jax.random.bernoulli(voice_key, ANY_VOICE_RATIO, time.shape)
        condition = flow.condition(
            batch["codes"], batch["code_lengths"], jnp.where(hidden, 0, batch["voices"])
        )
        layout = whole(batch["code_lengths"] * config.patches_per_code, target.shape[1])
        part = time[:, None, None]
        noisy = (1 - (1 - SIGMA_MIN) * part) * noise + part * target
        # The squared error of the velocity is this divided by (1 - (1 - SIGMA_MIN) * time)^2, which
        # would give nearly all weight to times near 1.
        error = jnp.mean((flow.estimate(noisy, time, condition, layout) - target) ** 2, axis=-1)
        weights = (layout.segments > 0).astype(jnp.float32)
        total, weight = jnp.sum(error * weights), jnp.sum(weights)
        return LossOutput(total, weight, {"mel": (total, weight)})

    return Stage(
        name="speech_decoder",
        init=model.init,
        axes=model.axes,
        loss=loss,
        batches=batches,
        evals=evals,
        identity=identity or {},
    )
