"""GLM-4-9B with speech: one trillion tokens at the paper's settings.

Paper: Zeng et al., arXiv 2411.17607, section 2.3, and the GLM-4-Voice report, arXiv 2412.02612,
  section 4.1: AdamW (0.9, 0.95), learning rate 6e-5 falling linearly to 6e-6, length 8192, 30%
  text, one epoch each of unsupervised speech and of ASR and TTS, the rest interleaved.
Ours, since the papers do not say: 1,024 rows a step (8.4M tokens: 119,000 steps, between GLM-130B's
  4M and Llama 3's 16M), 2,000 steps of warm-up (new rows of the vocabulary start far from their
  final values), weight decay 0.1, gradient norm 1, no attention between documents of a packed row.
Command: speechlm train configs/lm_9b_paper.py train.init_from=runs/base
  (runs/base: `speechlm convert glm-4-9b --run RUN --out runs/base`; docs/pretraining.md)
Machine: a TPU slice of 64 chips or more; the mesh is FSDP over all of them.
Time and expected loss: never run; `docs/pretraining.md` says what was checked without a TPU.
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
    tokens=10**12,
)


def config() -> LanguageModelExperiment:
    """Returns the experiment; every field can be overridden on the command line."""
    return LanguageModelExperiment(
        data=RowsData(
            mixture="runs/data/pretrain.mixture.json", phases=(PRETRAIN,), batch_size=1024
        ),
        model=preset("9B"),
        train=TrainConfig(
            total_steps=0,  # all rows of the phases
            num_microbatches=8,  # 2 rows a chip on 64 chips
            optimizer=OptimizerConfig(
                peak=6e-5,
                final=6e-6,
                warmup_steps=2000,
                schedule="linear",
                b1=0.9,
                b2=0.95,
                weight_decay=0.1,
            ),
            log_every_steps=10,
            save_every_steps=500,
            keep_every_steps=10_000,
        ),
        eval_every_steps=1000,
        z_loss=1e-4,
    )
