"""Trains an experiment, or resumes its run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.experiment import stages
from speechlm_jax.experiment.configs import (
    Experiment,
    LanguageModelExperiment,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
    load_experiment,
    operational,
)
from speechlm_jax.train.logs import info
from speechlm_jax.train.loop import CONFIG, fit


def train(config: str | Path, *, overrides: Sequence[str] = (), workdir: str | Path) -> None:
    """Trains the experiment of a config file; see `train_experiment`."""
    train_experiment(configs.override(load_experiment(config), overrides), workdir)


def train_experiment(experiment: Experiment, workdir: str | Path) -> None:
    """Trains an experiment in `workdir`, or resumes its run there.

    A run that an older version started keeps the defaults of that version.
    """
    written = Path(workdir) / CONFIG
    if written.is_file():
        kept = configs.as_started(experiment, artifacts.read_json(written))
        for change in configs.differences(configs.to_json(kept), configs.to_json(experiment)):
            info("%s: as it was started: %s by default", workdir, change)
        experiment = kept
    makers: dict[type, Any] = {
        SpeechTokenizerExperiment: stages.speech_tokenizer,
        LanguageModelExperiment: stages.language_model,
        SpeechDecoderExperiment: stages.speech_decoder,
    }
    resolved, stage = makers[type(experiment)](experiment)
    fit(stage, resolved.train, workdir, resolved=resolved, operational=operational(experiment))
