"""A run of the chain: its folders, its settings, and the outputs of its steps so far."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.audio.recordings import Features, audio_path
from speechlm_jax.bundle.contents import whole_run, write_contents
from speechlm_jax.bundle.make import run_contents
from speechlm_jax.bundle.models import Bundle
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.evals.suites.clips import EvaluationClips
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.sizes import QuickstartConfig
from speechlm_jax.text import make_vocab
from speechlm_jax.text_to_token.synthesize import TextToToken
from speechlm_jax.vocab import Vocab
from speechlm_jax.world.world import World

ARMS = ("interleaved", "baseline")
TRAIN = "train"


@dataclasses.dataclass
class Chain:
    """A run of either kind of quickstart: the folders, settings and models that all steps use.

    Attributes:
      folders: files and folders of the run.
      clip_batch_size: clips that the trained tokenizer and speech decoder take at once.
      config: settings of the whole chain.
      seed: seed of everything random.
      arms: names of the language models that are pre-trained at the same time.
      pairs: name of the codes folder of the clips that the speech decoder learns from.
      pair_kinds: `kind` of its clips in the feature folder; () takes all training clips.
    """

    folders: Folders
    config: QuickstartConfig
    seed: int
    clip_batch_size: int = dataclasses.field(default=64, kw_only=True)
    arms: ClassVar[tuple[str, ...]]
    pairs: ClassVar[str]
    pair_kinds: ClassVar[tuple[str, ...]]

    @cached_property
    def models(self) -> Bundle:
        """The run's models; each can be loaded once its step is done."""
        return Bundle(self.folders.run, whole_run(), clip_batch_size=self.clip_batch_size)

    def write_bundle(self) -> None:
        """Writes the run's `bundle.json`, which lists the models trained so far."""
        write_contents(self.folders.run, run_contents(self.folders.run))

    def codes(self, name: str) -> Path:
        """Returns the codes folder of this name."""
        return self.folders.codes / name

    def fingerprint(self, folder: Path) -> str:
        """Returns the fingerprint of a step's output."""
        return artifacts.read_manifest(folder).fingerprint

    @cached_property
    def features(self) -> Features:
        """Mel frames of every clip."""
        return Features(self.folders.features)

    @property
    def mel(self) -> MelConfig:
        """Settings of the mel frames: those that are there, as an older version may have begun."""
        folder = self.folders.features
        if not (folder / artifacts.MANIFEST).is_file():
            return self.config.mel
        return configs.from_json(MelConfig, artifacts.read_manifest(folder).config["mel"])

    def audio_of(self, row: dict[str, Any]) -> Path:
        """Returns the recording of a clip's row."""
        return audio_path(self.folders.clips, row["audio"])

    @cached_property
    def voices(self) -> tuple[str, ...]:
        """Names of the training voices."""
        rows = self.features.rows
        return tuple(sorted({row["speaker"] for row in rows if row["split"] == TRAIN}))

    @cached_property
    def voiced_vocab(self) -> Vocab:
        """The text-to-token model's vocabulary, which has an id for each voice."""
        return make_vocab(self.models.text, self.models.codes, voices=self.voices)

    @property
    def buckets(self) -> BucketConfig:
        """Lengths and sizes of batches of clips."""
        return self.config.buckets

    @cached_property
    def text_to_token(self) -> TextToToken:
        """The trained text-to-token model, with the sampling settings of the interleaved data."""
        return self.models.make_text_to_token(self.config.synthesis, vocab=self.voiced_vocab)

    def tokenizer_inputs(self) -> dict[str, str]:
        """Returns the fingerprints of the speech tokenizer's training data."""
        return {"features": self.features.fingerprint}

    def stage_fingerprints(self) -> dict[str, str]:
        """Returns the fingerprint of every finished step's output, for the report."""
        names = ("clips", "features", "tokenizer", "text_to_token", "interleaved",
                 "speech_decoder", *(f"lm_{arm}" for arm in self.arms), "chat")  # fmt: skip
        folders = {name: getattr(self.folders, name) for name in names}
        return {
            name: self.fingerprint(folder)
            for name, folder in folders.items()
            if (folder / artifacts.MANIFEST).is_file()
        }


@dataclasses.dataclass
class Quickstart(Chain):
    """A run on a closed world and its eSpeak audio."""

    world: World
    arms = ARMS
    pairs = "strings"
    pair_kinds = ("string",)

    @cached_property
    def spoken(self) -> EvaluationClips:
        """The evaluation clips as codes."""
        return EvaluationClips(self.codes("evaluation"), self.world)
