"""A 150M speech-text language model on a prepared mixture: fork this file for a bigger run.

Paper: Zeng et al., arXiv 2411.17607, pre-training (30% text; AdamW 0.9, 0.95; linear decay by ten).
Command: speechlm train configs/lm_150m.py data.mixture=runs/data/my_mixture.mixture.json
Machine: one host with accelerators; the mesh is FSDP over all of its devices.
Time and expected loss: not measured yet.
"""

from speechlm_jax.experiment.configs import LanguageModelExperiment, RowsData
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.transformer import ExecutionConfig, TransformerConfig
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig


def config() -> LanguageModelExperiment:
    """Returns the experiment; every field can be overridden on the command line."""
    transformer = TransformerConfig(
        num_layers=12, embed=768, heads=12, kv_heads=4, head_dim=64, mlp=3072,
        execution=ExecutionConfig(remat="full"),
    )  # fmt: skip
    return LanguageModelExperiment(
        data=RowsData(mixture="runs/data/my_mixture.mixture.json", batch_size=64),
        # vocab_size 0: the size of the rows' vocabulary.
        model=LanguageModelConfig(vocab_size=0, transformer=transformer, dtype="bfloat16"),
        train=TrainConfig(
            total_steps=20_000,
            optimizer=OptimizerConfig(
                peak=6e-4, final=6e-5, warmup_steps=500, schedule="linear", b2=0.95
            ),
            save_every_steps=1000,
            log_every_steps=50,
        ),
        eval_every_steps=1000,
    )
