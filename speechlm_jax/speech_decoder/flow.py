"""Conditional flow matching: codes -> mel frames (GLM-4-Voice report, section 3.2).

A block-causal token encoder reads the codes; an estimator reads noisy mel frames, the encoded
codes, the time and a voice. Paths are straight (Lipman et al. 2023, optimal transport). Mel frames
are grouped in patches, `patches_per_code` for each code, which keeps the attention short. A patch
holds more numbers than the estimator is wide. The estimator therefore predicts the clean patch,
from which the velocity follows: the velocity contains the noise, which does not fit through that
width (Li & He 2025, and docs/log.md).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.arrays import Array, Float, Int
from speechlm_jax.errors import UserError
from speechlm_jax.nn import param
from speechlm_jax.nn.attention import Layout, whole
from speechlm_jax.nn.layers import Linear, RMSNorm, sinusoids
from speechlm_jax.nn.transformer import Transformer, TransformerConfig

SIGMA_MIN = 1e-4  # noise left at the end of a path, as in Matcha-TTS and CosyVoice


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Sizes and mel statistics of the flow.

    Attributes:
      codebook_size: number of different codes in the input.
      num_voices: number of training voices; voice 0 of the table stands for "any".
      num_mels: mel bins of the output.
      mel_frames_per_code: mel frames for each code: 8 for codes at 12.5 Hz and mel frames at
        100 Hz.
      patches_per_code: positions of the estimator for each code.
      embed, heads, mlp: sizes of both stacks.
      encoder_layers, estimator_layers: layers of the token encoder and of the estimator.
      block_codes: codes of an attention block in both stacks; None attends to the whole clip.
      mel_mean, mel_std: mean and standard deviation of the training mel frames, with which the flow
        standardises them.
    """

    codebook_size: int
    num_voices: int
    num_mels: int = 80
    mel_frames_per_code: int = 8
    patches_per_code: int = 2
    embed: int = 160
    heads: int = 4
    mlp: int = 448
    encoder_layers: int = 2
    estimator_layers: int = 4
    block_codes: int | None = 10
    mel_mean: float = 0.0
    mel_std: float = 1.0

    def __post_init__(self) -> None:
        configs.at_least(self, 0, "codebook_size", "num_voices")
        configs.at_least(self, -configs.MOST, "mel_mean")
        configs.above_0(self, "mel_std")
        sizes = ("num_mels", "mel_frames_per_code", "patches_per_code", "embed", "heads", "mlp")
        configs.at_least(self, 1, *sizes, "encoder_layers", "estimator_layers", "block_codes")
        if self.mel_frames_per_code % self.patches_per_code:
            raise UserError(
                f"mel_frames_per_code: {self.mel_frames_per_code} is no multiple of "
                f"patches_per_code, {self.patches_per_code}"
            )
        if self.embed % self.heads:
            raise UserError(f"embed: {self.embed} is no multiple of heads, {self.heads}")
        self.stack(1, positions_per_code=self.patches_per_code)  # checks the rest

    @property
    def frames_per_patch(self) -> int:
        """Number of mel frames in a patch."""
        return self.mel_frames_per_code // self.patches_per_code

    def stack(self, layers: int, *, positions_per_code: int) -> TransformerConfig:
        """Returns the config of a stack with `positions_per_code` positions for each code."""
        block = None if self.block_codes is None else self.block_codes * positions_per_code
        head_dim = self.embed // self.heads
        return TransformerConfig(
            layers, self.embed, self.heads, self.heads, head_dim, self.mlp, block=block
        )


class Flow(nnx.Module):
    """Module of the token encoder and the estimator."""

    def __init__(self, config: FlowConfig, *, rngs: nnx.Rngs):
        self.config = config
        embed, patch = config.embed, config.frames_per_patch * config.num_mels
        self.codes = param.normal(
            rngs, (config.codebook_size, embed), ("vocab", "embed"), stddev=1.0
        )
        self.voices = param.normal(
            rngs, (config.num_voices + 1, embed), (None, "embed"), stddev=1.0
        )
        self.encoder = Transformer(
            config.stack(config.encoder_layers, positions_per_code=1), rngs=rngs
        )
        self.encoder_norm = RMSNorm(embed)
        self.patch_in = Linear(patch, embed, (None, "embed"), rngs=rngs)
        self.code_in = Linear(embed, embed * config.patches_per_code, ("embed", None), rngs=rngs)
        self.time_in = Linear(embed, embed, (None, "embed"), rngs=rngs)
        estimator = config.stack(
            config.estimator_layers, positions_per_code=config.patches_per_code
        )
        self.estimator = Transformer(estimator, rngs=rngs)
        self.out_norm = RMSNorm(embed)
        self.patch_out = Linear(embed, patch, ("embed", None), rngs=rngs, scale=0.1)

    def condition(
        self,
        codes: Int[Array, "batch frames"],
        lengths: Int[Array, " batch"],
        voices: Int[Array, " batch"],
    ) -> Float[Array, "batch patches embed"]:
        """Returns the condition of the estimator: encoded codes at patch rate, plus the voice."""
        x = self.encoder(self.codes[...][codes], whole(lengths, codes.shape[1]))
        x = self.code_in(self.encoder_norm(x))
        x = x.reshape(x.shape[0], -1, self.config.embed)
        return x + self.voices[...][voices][:, None]

    def velocity(
        self,
        noisy: Float[Array, "batch patches patch"],
        time: Float[Array, " batch"],
        condition: Float[Array, "batch patches embed"],
        layout: Layout,
    ) -> Float[Array, "batch patches patch"]:
        """Estimates the velocity at `time` in [0, 1): `clean - (1 - SIGMA_MIN) * noise`.

        The path is `noisy = (1 - (1 - SIGMA_MIN) * time) * noise + time * clean`.
        """
        clean = self.estimate(noisy, time, condition, layout)
        part = time[:, None, None]
        noise = (noisy - part * clean) / (1 - (1 - SIGMA_MIN) * part)
        return clean - (1 - SIGMA_MIN) * noise

    def estimate(
        self,
        noisy: Float[Array, "batch patches patch"],
        time: Float[Array, " batch"],
        condition: Float[Array, "batch patches embed"],
        layout: Layout,
    ) -> Float[Array, "batch patches patch"]:
        """Estimates the clean patches from noisy patches at `time`."""
        times = self.time_in(sinusoids(1000.0 * time, self.config.embed))
        x = self.patch_in(noisy) + condition + times[:, None]
        return self.patch_out(self.out_norm(self.estimator(x, layout)))

    def patches(
        self, mel: Float[Array, "batch mel_frames mels"]
    ) -> Float[Array, "batch patches patch"]:
        """Standardises mel frames and groups them in patches of `frames_per_patch`."""
        config = self.config
        scaled = (mel - config.mel_mean) / config.mel_std
        return scaled.reshape(mel.shape[0], -1, config.frames_per_patch * config.num_mels)

    def codes_to_mel(
        self,
        codes: Int[Array, "batch frames"],
        lengths: Int[Array, " batch"],
        voices: Int[Array, " batch"],
        noise: Float[Array, "batch patches patch"],
        *,
        steps: int = 10,
    ) -> Float[Array, "batch mel_frames mels"]:
        """Turns codes into mel frames: solves the flow from `noise` by Euler steps.

        The time schedule is a cosine. Codes are right-padded to `lengths`; mel frames of padding
        are meaningless.
        """
        condition = self.condition(codes, lengths, voices)
        layout = whole(lengths * self.config.patches_per_code, noise.shape[1])
        times = 1 - jnp.cos(jnp.linspace(0.0, 1.0, steps + 1) * 0.5 * jnp.pi)

        def step(x: Array, span: tuple[Array, Array]) -> tuple[Array, None]:
            here, there = span
            velocity = self.velocity(x, jnp.full(x.shape[0], here), condition, layout)
            return x + (there - here) * velocity, None

        x, _ = jax.lax.scan(step, noise, (times[:-1], times[1:]))
        mel = x.reshape(x.shape[0], -1, self.config.num_mels)
        return mel * self.config.mel_std + self.config.mel_mean
