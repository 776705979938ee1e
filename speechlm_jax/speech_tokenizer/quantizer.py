"""Vector quantizer: latents -> codes, with an EMA codebook that gets no gradients.

GLM-4-Voice report, section 3.1: exponential moving averages, commitment loss, and random restart
of entries whose mean use falls below a threshold (Jukebox, Dhariwal et al. 2020). The codebook
moves once a step, by sums over all of the step's frames: `draw` before the batch is split,
`sums` of each micro batch, `updated` at the end. All goes over the entries in pieces, and in
float32.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Bool, Float, Int, Key
from speechlm_jax.nn.param import Buffer

PIECE = 1024  # entries that all latents are compared with at a time
MOST_DRAWN = 16_384  # latents drawn a step: enough for the largest codebook but that of 6.25 Hz
EXACT = jax.lax.Precision.HIGHEST  # a TPU or GPU would round the factors of a product


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Settings of the codebook. The defaults suit small codebooks; `released` has the others.

    Attributes:
      codebook_size, codebook_dim: number of entries and their width.
      ema_decay: decay of the moving averages of counts and sums.
      dead_code_threshold: average count below which an entry is restarted; null: `ema_decay` to the
        power of `restart_every_steps`, below which an entry falls that no frame chooses from one
        restart to the next. 0.05 at a decay of 0.97 is much the same: 98 updates without a frame.
      restart_every_steps: updates between restarts.
      count_smoothing: what Laplace smoothing adds to each average count, at the same sum of counts.
      start_step: updates before latents are quantized; until then the codebook is filled with
        recent latents, so that it starts from the data (0 quantizes from the first update).
    """

    codebook_size: int = 512
    codebook_dim: int = 64
    ema_decay: float = 0.97
    dead_code_threshold: float | None = 0.05
    start_step: int = 0
    restart_every_steps: int = configs.added(1)
    count_smoothing: float = configs.added(0.0)

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "codebook_size", "codebook_dim", "restart_every_steps")
        configs.at_least(self, 0, "ema_decay", most=1)
        configs.at_least(self, 0, "dead_code_threshold", "start_step", "count_smoothing")

    @classmethod
    def released(cls, *, codebook_size: int, codebook_dim: int) -> "QuantizerConfig":
        """Returns the settings of the tokenizer that the GLM-4-Voice authors released.

        The decay is in the report's section 3.1 and in the release; smoothing and restarts are the
        release's. The number of updates between restarts is stated nowhere: after 100, an entry
        without a frame has 0.37 of its count.
        """
        return cls(
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            ema_decay=0.99,
            dead_code_threshold=None,
            restart_every_steps=100,
            count_smoothing=1e-5,
        )

    @property
    def least_count(self) -> float:
        """Average count below which an entry is restarted."""
        if self.dead_code_threshold is None:
            return self.ema_decay**self.restart_every_steps
        return self.dead_code_threshold


class Quantized(NamedTuple):
    """Codes, their vectors (gradients pass straight through) and each frame's commitment error."""

    codes: Int[Array, "batch frames"]
    vectors: Float[Array, "batch frames codebook_dim"]
    commitment: Float[Array, "batch frames"]


class CodebookSums(NamedTuple):
    """What moves the codebook: sums over frames, which are added over micro batches and devices.

    Attributes:
      count: number of valid frames that chose each entry.
      total: sum of their latents.
      drawn: random valid latents, as `draw` chose them; 0 in rows that there are no frames for.
    """

    count: Float[Array, " codebook"]
    total: Float[Array, "codebook codebook_dim"]
    drawn: Float[Array, "numbers codebook_dim"]


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
        """Returns the index of the nearest entry (squared L2), the lowest index on ties.

        A latent that is not finite gets some index all the same.
        """
        codebook = jax.lax.stop_gradient(self.codebook[...])
        flat = _flat(latents)

        def closer(best: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
            entries = jax.lax.dynamic_slice_in_dim(codebook, start, piece)
            products = jnp.matmul(flat, entries.T, precision=EXACT)
            distance = jnp.sum(entries**2, axis=-1) - 2 * products
            code = jnp.argmin(distance, axis=-1)
            least = jnp.min(distance, axis=-1)
            is_closer = least < best[0]
            code = jnp.where(is_closer, start + code.astype(jnp.int32), best[1])
            return (jnp.where(is_closer, least, best[0]), code), None

        starts, piece = _pieces(self.config.codebook_size)
        first = (jnp.full(len(flat), jnp.inf), jnp.zeros(len(flat), jnp.int32))
        (_, codes), _ = jax.lax.scan(closer, first, starts)
        return codes.reshape(latents.shape[:-1])

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

    @property
    def _most_drawn(self) -> int:
        return min(self.config.codebook_size, MOST_DRAWN)

    def draw(
        self, valid: Bool[Array, "batch frames"], key: Key[Array, ""]
    ) -> Int[Array, "batch frames"]:
        """Draws different valid frames of a whole batch, one for each entry (at most `MOST_DRAWN`).

        Returns each frame's number among those drawn, in random order; `MOST_DRAWN` if it is not
        drawn.
        """
        order = jnp.where(valid, jax.random.uniform(key, valid.shape), -1.0).reshape(-1)
        _, first = jax.lax.top_k(order, min(self._most_drawn, order.size))
        numbers = jnp.full(order.shape, MOST_DRAWN).at[first].set(jnp.arange(len(first)))
        return jnp.where(valid, numbers.reshape(valid.shape), MOST_DRAWN)

    def sums(
        self,
        latents: Float[Array, "batch frames codebook_dim"],
        codes: Int[Array, "batch frames"],
        valid: Bool[Array, "batch frames"],
        numbers: Int[Array, "batch frames"],
    ) -> CodebookSums:
        """Returns the sums of the `valid` frames of a micro batch.

        Args:
          numbers: these frames' part of what `draw` returned for the whole batch.
        """
        size, dim = self.config.codebook_size, latents.shape[-1]
        # what lies in padding may be anything, also NaN
        flat = jnp.where(valid.reshape(-1, 1), _flat(latents), 0.0)
        codes = jnp.where(valid, codes, size).reshape(-1)

        def add(sums: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
            chosen = (codes[:, None] == start + jnp.arange(piece)).astype(jnp.float32)
            parts = (jnp.sum(chosen, axis=0), jnp.matmul(chosen.T, flat, precision=EXACT))
            put = jax.lax.dynamic_update_slice_in_dim
            return (put(sums[0], parts[0], start, 0), put(sums[1], parts[1], start, 0)), None

        starts, piece = _pieces(size)
        (count, total), _ = jax.lax.scan(add, (jnp.zeros(size), jnp.zeros((size, dim))), starts)
        drawn = jnp.zeros((self._most_drawn, dim)).at[numbers.reshape(-1)].add(flat, mode="drop")
        return CodebookSums(count, total, drawn)

    def updated(self, sums: CodebookSums) -> dict[str, Array]:
        """Returns the quantizer's variables after a step with these sums over all its frames."""
        updates, start = self.updates[...], self.config.start_step
        moved = self._moved(sums)
        if start:
            moved = jax.tree.map(partial(jnp.where, updates >= start), moved, self._collected())
        count, total, number = moved
        num_drawn = jnp.minimum(jnp.sum(sums.count), len(sums.drawn)).astype(jnp.int32)
        fresh = (number >= 0) & (num_drawn > 0)
        count = jnp.where(fresh, 1.0, count)
        # if fewer were drawn than there are entries to fill, they come again and again
        drawn = sums.drawn[number % jnp.maximum(num_drawn, 1)]
        total = jnp.where(fresh[:, None], drawn, total)
        # without smoothing, the count of an entry that is never chosen may become 0
        usable = (count > 0)[:, None]
        moved = total / jnp.where(usable, count[:, None], 1.0)
        codebook = jnp.where(usable, moved, self.codebook[...])
        return {"codebook": codebook, "ema_count": count, "ema_sum": total, "updates": updates + 1}

    def _moved(self, sums: CodebookSums) -> tuple[Array, Array, Array]:
        """Returns (count, total, number) after a step that quantizes.

        `number` counts the entries to restart from 0 on; it is -1 for all others.
        """
        config, updates = self.config, self.updates[...] - self.config.start_step
        decay, smoothing = config.ema_decay, config.count_smoothing
        count = decay * self.ema_count[...] + (1 - decay) * sums.count
        if smoothing:
            whole = jnp.sum(count)
            count = (count + smoothing) / (whole + config.codebook_size * smoothing) * whole
        total = decay * self.ema_sum[...] + (1 - decay) * sums.total
        due = (updates + 1) % config.restart_every_steps == 0
        dead = due & (count < config.least_count)
        return count, total, jnp.where(dead, jnp.cumsum(dead) - 1, -1)

    def _collected(self) -> tuple[Array, Array, Array]:
        """Returns (count, total, number) after a step before `start_step`.

        Each step fills the next part of the codebook, which then holds latents of the last 8 steps,
        or of `start_step` steps if those are fewer.
        """
        size = self.config.codebook_size
        share = -(-size // min(8, self.config.start_step))
        number = (jnp.arange(size) - self.updates[...] * share) % size
        return jnp.ones(size), self.codebook[...], jnp.where(number < share, number, -1)


def _flat(latents: Float[Array, "*batch codebook_dim"]) -> Float[Array, "frames codebook_dim"]:
    """Returns latents as float32 rows, without a gradient."""
    flat = jax.lax.stop_gradient(latents).astype(jnp.float32)
    return flat.reshape(-1, latents.shape[-1])


def _pieces(size: int) -> tuple[Int[Array, " pieces"], int]:
    """Returns where pieces of `size` entries start, and their size; the last may overlap."""
    piece = min(size, PIECE)
    return jnp.minimum(jnp.arange(0, size, piece), size - piece), piece
