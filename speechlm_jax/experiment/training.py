"""Trains an experiment, or goes on where its run stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax.config import override
from speechlm_jax.experiment import stages
from speechlm_jax.experiment.configs import (
    Experiment,
    LanguageModelExperiment,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
    load_experiment,
    operational,
)
from speechlm_jax.train.loop import fit


def train(config: str | Path, *, overrides: Sequence[str] = (), workdir: str | Path) -> None:
    """Trains what a config file says; see `train_experiment`."""
    train_experiment(override(load_experiment(config), overrides), workdir)


def train_experiment(experiment: Experiment, workdir: str | Path) -> None:
    """Trains an experiment in `workdir`, or goes on where it stopped."""
    makers: dict[type, Any] = {
        SpeechTokenizerExperiment: stages.speech_tokenizer,
        LanguageModelExperiment: stages.language_model,
        SpeechDecoderExperiment: stages.speech_decoder,
    }
    resolved, stage = makers[type(experiment)](experiment)
    fit(stage, resolved.train, workdir, resolved=resolved, operational=operational(experiment))
