"""Experiments: data, model and training of a run as one frozen dataclass, and files of these."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeAlias

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.augment import AugmentConfig
from speechlm_jax.bucket import DISK_GB
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.data.shares import PhaseSpec, Share
from speechlm_jax.errors import UserError
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.stage import SpeechTokenizerLoss
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.run_identity import OPERATIONAL, decisive

ModelKind: TypeAlias = Literal["lm", "text_to_token"]
# Fields that say where data lies, not what it is: stages carry the fingerprints of their data.
PLACES = {
    "ClipsData": frozenset({"features", "text_vocab", "codes"}),
    "RowsData": frozenset({"mixture", "disk_gb", "cache"}),
}
# Fields that the fingerprint of the data covers too; older runs do not name them.
OF_DATA = {"SpeechTokenizerConfig": frozenset({"mel"})}
# Evaluation settings, and how a stack is computed: they change rounding at most.
EXECUTION = {
    "LanguageModelExperiment": frozenset({"eval_every_steps", "eval_rows"}),
    "TransformerConfig": frozenset({"execution"}),
}


@dataclasses.dataclass(frozen=True)
class ClipsData:
    """Clips to train on.

    Attributes:
      features: feature folder (see `audio.recordings`).
      text_vocab: SentencePiece model of the transcripts.
      codes: codes folder of the same clips, where codes are needed.
      split: clips whose manifest row has this `split` (rows without one belong to "train").
      kinds: if given, only clips of these `kind`s.
      not_speakers: speakers to leave out.
      buckets: lengths of the buckets, and clips per batch.
      augment: random changes to a speech tokenizer's clips; None makes none.
    """

    features: str
    text_vocab: str = ""
    codes: str = ""
    split: str = "train"
    kinds: tuple[str, ...] = ()
    not_speakers: tuple[str, ...] = ()
    buckets: BucketConfig = BucketConfig()
    augment: AugmentConfig | None = None


@dataclasses.dataclass(frozen=True)
class RowsData:
    """Packed rows to train on.

    Attributes:
      mixture: the .mixture.json that `prepare` wrote: a path, or an address (gs://...).
      shares: share of the budget by task; empty takes the mixture's SeqIO rates.
      phases: phases with their own budgets, instead of `shares`; `train.total_steps` 0 then trains
        on all their rows.
      batch_size: rows a step, over all hosts.
      seed: seed of the order of rows.
      disk_gb: space on this host's disk for rows from an address, in 10^9 bytes.
      cache: local folder for rows from an address; empty takes the system's temporary one.
    """

    mixture: str
    shares: dict[str, Share] = dataclasses.field(default_factory=dict)
    phases: tuple[PhaseSpec, ...] = ()
    batch_size: int = 8
    seed: int = 0
    disk_gb: float = DISK_GB
    cache: str = ""

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "batch_size")
        configs.at_least(self, 0, "seed", most=2**63 - 1)
        configs.above_0(self, "disk_gb")


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerExperiment:
    """Training of a speech tokenizer.

    Attributes:
      data: the clips.
      model: shape of the model; `text_size` 0 is read from the text vocabulary.
      train: settings of the training.
      loss: weights of the losses.
    """

    data: ClipsData
    model: SpeechTokenizerConfig
    train: TrainConfig
    loss: SpeechTokenizerLoss = SpeechTokenizerLoss()


@dataclasses.dataclass(frozen=True)
class LanguageModelExperiment:
    """Training of a language model, or of a text-to-token model, on rows.

    Attributes:
      data: the rows.
      model: shape of the model; `vocab_size` 0 is read from the rows' vocabulary.
      train: settings of the training.
      kind: which of the two models it is.
      eval_every_steps: updates between held-out losses.
      eval_rows: largest number of rows of each task in a held-out loss, spread over all that are
        held out; 0: all of them.
      z_loss: weight of the squared log-partition.
    """

    data: RowsData
    model: LanguageModelConfig
    train: TrainConfig
    kind: ModelKind = "lm"
    eval_every_steps: int = 500
    eval_rows: int = configs.added(1024)
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "eval_every_steps")
        configs.at_least(self, 0, "eval_rows", "z_loss")


@dataclasses.dataclass(frozen=True)
class SpeechDecoderExperiment:
    """Training of a flow from codes to mel frames.

    Attributes:
      data: the clips, without `augment`, and their codes.
      model: shape of the model; `codebook_size`, `num_voices` (0), `mel_mean` and `mel_std` are
        replaced by those of the data.
      train: settings of the training.
    """

    data: ClipsData
    model: FlowConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        if self.data.augment is not None:
            raise UserError("data.augment: is for speech tokenizers alone")


Experiment = SpeechTokenizerExperiment | LanguageModelExperiment | SpeechDecoderExperiment
EXPERIMENTS = {
    cls.__name__: cls
    for cls in (SpeechTokenizerExperiment, LanguageModelExperiment, SpeechDecoderExperiment)
}


def load_experiment(path: str | Path) -> Experiment:
    """Reads an experiment from a Python config file or from a resolved config.json."""
    if Path(path).suffix == ".json":
        return experiment_from_json(artifacts.read_json(path), str(path))
    found = configs.load(path)
    if type(found).__name__ not in EXPERIMENTS:
        raise UserError(f"{path}: config() returned {type(found).__name__}, not an experiment")
    return found


def experiment_from_json(data: Any, where: str) -> Experiment:
    """Returns the experiment of JSON data; `where` names the data in errors."""
    cls = EXPERIMENTS.get(str(data.get("class"))) if isinstance(data, dict) else None
    if cls is None:
        raise UserError(f"{where}: is not the config of an experiment")
    return configs.from_json(cls, data)


def operational(experiment: Experiment) -> dict[str, frozenset[str]]:
    """Returns the fields of an experiment, by class name, that may change when its run resumes.

    The number of microbatches is one of them, because it changes only the order of sums and of
    draws; but not for a speech tokenizer: in older versions each microbatch moved its codebook, and
    fingerprints of its weights tell their number.
    """
    found = OPERATIONAL | PLACES | EXECUTION | OF_DATA
    if not isinstance(experiment, SpeechTokenizerExperiment):
        found["TrainConfig"] |= {"num_microbatches"}
    return found


def essence(experiment: Experiment) -> dict[str, Any]:
    """Returns what decides an experiment's result: JSON data without folders or `init_from`."""
    return _essence(configs.to_json(experiment), experiment)


def essences(stored: Any, experiment: Experiment) -> tuple[Any, Any]:
    """Returns the essences of stored JSON data, of this version or an older, and of an experiment.

    They are equal if the data is of this experiment.
    """
    mine = configs.as_started(experiment, stored)
    return _essence(configs.upgraded(stored, mine), mine), essence(mine)


def _essence(data: Any, experiment: Experiment) -> Any:
    left_out = operational(experiment)
    left_out["TrainConfig"] |= {"init_from"}
    return decisive(data, left_out)
