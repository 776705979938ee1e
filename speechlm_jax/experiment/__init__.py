"""Experiments: config -> stage -> training run, and run -> the trained thing that a verb needs.

The one room that joins the others. An experiment is a frozen dataclass (`configs`); `train` makes
its stage (`stages`) and runs the loop; `load_*` (`runs`) read back what was trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlm_jax.config import override
from speechlm_jax.experiment import stages
from speechlm_jax.experiment.configs import (
    PLACES,
    ClipsData,
    Experiment,
    LanguageModelExperiment,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
    essence,
    experiment_from_json,
    load_experiment,
)
from speechlm_jax.experiment.runs import (
    held_out_losses,
    load_inference,
    load_language_model,
    load_reader,
    load_speech_decoder,
    load_vocab,
    save_language_model,
    trained_model,
    weights_fingerprint,
)
from speechlm_jax.train.loop import OPERATIONAL, fit

__all__ = [
    "ClipsData",
    "Experiment",
    "LanguageModelExperiment",
    "PLACES",
    "RowsData",
    "SpeechDecoderExperiment",
    "SpeechTokenizerExperiment",
    "essence",
    "experiment_from_json",
    "held_out_losses",
    "load_experiment",
    "load_inference",
    "load_language_model",
    "load_reader",
    "load_speech_decoder",
    "load_vocab",
    "save_language_model",
    "train",
    "train_experiment",
    "trained_model",
    "weights_fingerprint",
]


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
    fit(stage, resolved.train, workdir, resolved=resolved, operational=OPERATIONAL | PLACES)
