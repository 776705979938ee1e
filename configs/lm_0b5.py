"""Qwen2.5-0.5B with speech: 50 billion tokens, the smallest model that is worth a slice.

Paper: Zeng et al., arXiv 2411.17607, has no model of this size; the mixture is that of the 9B model
  (GLM-4-Voice report, arXiv 2412.02612, section 4.1).
Ours: 512 rows of 4,096 ids a step (2.1M tokens: 24,000 steps); peak 5e-4, a tenth at the end, as
  for continued training of models of this size. No annealing: it is for comparisons of mixtures.
Command: speechlm train configs/lm_0b5.py train.init_from=runs/base
  (runs/base: `speechlm convert Qwen2.5-0.5B --run RUN --out runs/base`; docs/pretraining.md)
Machine: a TPU slice of 16 chips, or 4 GPUs with 80 GB; the mesh is FSDP over all of them.
Time and expected loss: never run; `docs/plans/` says what was compiled without a TPU.
"""

from speechlm_jax.data.shares import PhaseSpec, epochs, fraction, rest
from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.lm.presets import preset
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

# The tasks of your mixture, named by content; every name must be a task that `prepare` was given.
PRETRAIN = PhaseSpec(
    "pretrain",
    {
        "text": fraction(0.3),
        "speech": epochs(1),
        "asr": epochs(1),
        "tts": epochs(1),
        "interleaved": rest(),
    },
    tokens=50 * 10**9,
)


def config() -> LanguageModelExperiment:
    """Returns the experiment; every field can be overridden on the command line."""
    return LanguageModelExperiment(
        data=RowsData(
            mixture="runs/data/pretrain.mixture.json", phases=(PRETRAIN,), batch_size=512
        ),
        model=preset("0.5B"),
        train=TrainConfig(
            total_steps=0,  # all rows of the phases
            num_microbatches=8,  # 4 rows a chip on 16 chips
            optimizer=OptimizerConfig(
                peak=5e-4, final=5e-5, warmup_steps=1000, schedule="linear", b2=0.95
            ),
            log_every_steps=20,
            save_every_steps=500,
            keep_every_steps=5000,
        ),
        eval_every_steps=1000,
        z_loss=1e-4,
    )
