"""Vector quantizer: latents -> codes, with an EMA codebook that gets no gradients.

GLM-4-Voice report, section 3.1: exponential moving averages, commitment loss, and random restart
of entries whose mean use falls below a threshold (Jukebox, Dhariwal et al. 2020).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int, Key
from speechlm_jax.nn.param import Buffer


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Settings of the codebook.

    Attributes:
      codebook_size, codebook_dim: number of entries and their width.
      ema_decay: decay of the moving averages of counts and sums.
      dead_code_threshold: average count below which an entry is restarted.
      start_step: updates (one for each microbatch) before latents are quantized; until then the
        codebook is filled with recent latents, so that it starts from the data (0 quantizes from
        the first update).
    """

    codebook_size: int = 512
    codebook_dim: int = 64
    ema_decay: float = 0.97
    dead_code_threshold: float = 0.05
    start_step: int = 0

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "codebook_size", "codebook_dim")
        configs.at_least(self, 0, "ema_decay", most=1)
        configs.at_least(self, 0, "dead_code_threshold", "start_step")


class Quantized(NamedTuple):
    """Codes, their vectors (gradients pass straight through) and each frame's commitment error."""

    codes: Int[Array, "batch frames"]
    vectors: Float[Array, "batch frames codebook_dim"]
    commitment: Float[Array, "batch frames"]


class Quantizer(nnx.Module):
    """The codebook and its moving averages, as `variables`."""

    def __init__(self, config: QuantizerConfig, *, rngs: nnx.Rngs):
        self.config = config
        size, dim = config.codebook_size, config.codebook_dim
        first = jax.random.normal(rngs.params(), (size, dim))
        self.codebook = Buffer(first)
        self.ema_count = Buffer(jnp.ones(size))
        self.ema_sum = Buffer(first)
        self.updates = Buffer(jnp.int32(0))

    def nearest(self, latents: Float[Array, "*batch codebook_dim"]) -> Int[Array, "*batch"]:
        """Returns the index of the nearest entry (squared L2), the lowest index on ties."""
        codebook = self.codebook[...]
        distance = jnp.sum(codebook**2, axis=-1) - 2 * latents.astype(jnp.float32) @ codebook.T
        return jnp.argmin(distance, axis=-1).astype(jnp.int32)

    def lookup(self, codes: Int[Array, "*batch"]) -> Float[Array, "*batch codebook_dim"]:
        """Returns the codebook entries of codes."""
        return self.codebook[...][codes]

    def __call__(self, latents: Float[Array, "batch frames codebook_dim"]) -> Quantized:
        """Quantizes latents; before `start_step` updates the vectors are the latents themselves."""
        codes = self.nearest(latents)
        vectors = self.lookup(codes)
        active = self.updates[...] >= self.config.start_step
        error = jnp.mean((latents - jax.lax.stop_gradient(vectors)) ** 2, axis=-1)
        through = latents + jax.lax.stop_gradient(vectors - latents)
        return Quantized(codes, jnp.where(active, through, latents), jnp.where(active, error, 0.0))

    def updated(
        self,
        latents: Float[Array, "batch frames codebook_dim"],
        codes: Int[Array, "batch frames"],
        valid: Bool[Array, "batch frames"],
        key: Key[Array, ""],
    ) -> dict[str, Array]:
        """Returns the quantizer's variables after this batch; only `valid` frames count."""
        state = (self.codebook[...], self.ema_count[...], self.ema_sum[...])
        flat = jax.lax.stop_gradient(latents).reshape(-1, latents.shape[-1]).astype(jnp.float32)
        mask = valid.reshape(-1).astype(jnp.float32)
        updates = self.updates[...]
        following = self._ema(state, flat, codes.reshape(-1), mask, key)
        collected = self._collect(state, flat, mask, key, updates)
        active = updates >= self.config.start_step
        codebook, count, total = jax.tree.map(
            lambda a, b: jnp.where(active, a, b), following, collected
        )
        return {"codebook": codebook, "ema_count": count, "ema_sum": total, "updates": updates + 1}

    def _ema(self, state: tuple, flat: Array, codes: Array, mask: Array, key: Array) -> tuple:
        """Updates the moving averages of the latents that chose each entry; restarts dead entries.

        Returns (codebook, count, sum).
        """
        _, count, total = state
        decay, size = self.config.ema_decay, self.config.codebook_size
        chosen = jax.nn.one_hot(codes, size) * mask[:, None]
        count = decay * count + (1 - decay) * jnp.sum(chosen, axis=0)
        total = decay * total + (1 - decay) * (chosen.T @ flat)
        dead = count < self.config.dead_code_threshold
        fresh = self._draw(flat, mask, key, size)
        count = jnp.where(dead, 1.0, count)
        total = jnp.where(dead[:, None], fresh, total)
        return total / count[:, None], count, total

    def _collect(self, state: tuple, flat: Array, mask: Array, key: Array, updates: Array) -> tuple:
        """Fills the next part of the codebook with latents of this batch, before `start_step`.

        The codebook then holds latents of the last 8 batches, or of `start_step` batches if those
        are fewer. Returns (codebook, count, sum).
        """
        codebook, count, _ = state
        share = -(-self.config.codebook_size // max(1, min(8, self.config.start_step)))
        slots = (updates * share + jnp.arange(share)) % self.config.codebook_size
        codebook = codebook.at[slots].set(self._draw(flat, mask, key, share))
        return codebook, jnp.ones_like(count), codebook

    def _draw(self, flat: Array, mask: Array, key: Array, number: int) -> Array:
        """Draws `number` valid latents at random, with replacement."""
        picked = jax.random.categorical(key, jnp.where(mask > 0, 0.0, -jnp.inf), shape=(number,))
        return flat[picked]
