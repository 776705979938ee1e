"""What a report is made from: figures, claims, and where each thing to show lies."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from speechlm_jax.arrays import Float, Integer, ndarray
from speechlm_jax.evals.exposure import Exposure
from speechlm_jax.evals.items import Figure, Item

DUEL = "One question, two arms"  # the group of recordings that is shown first
COMPARED = "Two arms, one difference"  # the section with both arms' figures


@dataclasses.dataclass(frozen=True)
class Claim:
    """What must hold of a figure.

    Attributes:
      text: the claim in words.
      figure: name of the figure.
      rule, bar: `part` of the figure must be at least, at most, above or below `bar`.
      kind: a `bar` is met or missed; a `finding` is shown or not shown.
    """

    text: str
    figure: str
    rule: Literal["at least", "at most", "above", "below"]
    bar: float
    part: Literal["value", "low", "high"] = "value"
    kind: Literal["bar", "finding"] = "bar"


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step of the chain, summed over restarts."""

    wall_seconds: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the figures come from: for `report.json`, and the page's top and last section.

    Attributes:
      timing: by step.
      seeds, versions, fingerprints: by what they are of; `versions` by package.
      command: what makes the run, as a shell takes it.
      commit: of the checkout that made it; "" where there is none.
      date: when its last step ended, YYYY-MM-DD.
    """

    timing: Mapping[str, StepTime]
    seeds: Mapping[str, int]
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]
    command: str = ""
    commit: str = ""
    date: str = ""


@dataclasses.dataclass(frozen=True)
class Training:
    """A training run; those of one `panel` are drawn together as `series` (two arms, say)."""

    panel: str
    series: str
    workdir: Path


@dataclasses.dataclass(frozen=True, eq=False)
class MelPair:
    """Log-mel of an original and of what came back through the codes."""

    title: str
    original: Float[ndarray, "mel_frames mels"]
    reconstruction: Float[ndarray, "other_mel_frames mels"]
    mel_rate_hz: float = 100.0


@dataclasses.dataclass(frozen=True)
class Audio:
    """A WAV file to play; `group` puts those that belong together under one heading.

    `path` None: nothing was said, which is shown too.
    """

    group: str
    title: str
    path: Path | None
    text: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What is shown beside the figures.

    Attributes:
      mel_pairs: originals and reconstructions.
      documents: a few rows of an interleaved folder (`segments` with `text` or `codes` and `text`).
      audio: WAV files, embedded.
      items: scored answers of both arms; a few of them are shown side by side.
    """

    mel_pairs: tuple[MelPair, ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    audio: tuple[Audio, ...] = ()
    items: tuple[Item, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything in a report.

    Attributes:
      title, note: heading, and a sentence on what was run (size, world, seed).
      warning: what must be known before a figure is read; "" for nothing.
      figures: by name, as in `evals.items`.
      provenance: timing, seeds, versions, fingerprints.
      claims: what must hold; none where nothing is claimed (`--size micro`).
      chance: what a guess gives, by the beginning of a figure's name; the longest fits.
      arms: names of the two models that are compared, the expected winner first; () for none.
      tiles: (figure, words) of the numbers at the page's top, where they were measured.
      notes: a sentence under a section's heading, by heading.
      trainings: whose metrics.jsonl give the loss curves.
      codebook_counts: how often each entry was met on held-out clips.
      exposure: by arm, by class of facts.
      bad_recordings: rows that were set aside, with `reason`.
      examples: see `Examples`.
    """

    title: str
    note: str
    figures: Mapping[str, Figure]
    provenance: Provenance
    warning: str = ""
    claims: tuple[Claim, ...] = ()
    chance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    arms: tuple[str, ...] = ()
    tiles: tuple[tuple[str, str], ...] = ()
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trainings: tuple[Training, ...] = ()
    codebook_counts: Integer[ndarray, " codebook"] | None = None
    exposure: Mapping[str, Mapping[str, Exposure]] = dataclasses.field(default_factory=dict)
    bad_recordings: tuple[Mapping[str, Any], ...] = ()
    examples: Examples = Examples()
