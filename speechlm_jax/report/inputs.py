"""Inputs of a report: figures, claims, and the examples to show."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from speechlm_jax.arrays import Float, Integer, ndarray
from speechlm_jax.evals.exposure import Exposure
from speechlm_jax.evals.items import Figure, Item

DUEL = "One question, two arms"  # group of recordings that is shown first
COMPARED = "Two arms, one difference"  # heading of the section with both arms' figures


@dataclasses.dataclass(frozen=True)
class Claim:
    """A condition that a figure should meet.

    Attributes:
      text: the claim in words.
      figure: name of the figure.
      rule, bar: `part` of the figure must be at least, at most, above or below `bar`.
      kind: "bar" for a claim that is met or missed, "finding" for one that is shown or not shown.
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
    """Origin of the figures, for `report.json` and the page's top and last section.

    Attributes:
      timing: times by step.
      seeds, versions, fingerprints: values by what they belong to; `versions` by package.
      command: shell command that makes the run.
      commit: commit of the checkout that made the run; "" if there is none.
      date: date on which its last step ended, YYYY-MM-DD.
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
    """A training run; runs of one `panel` are drawn together as `series` (two arms, say)."""

    panel: str
    series: str
    workdir: Path


@dataclasses.dataclass(frozen=True, eq=False)
class MelPair:
    """Log-mel of an original and of its reconstruction from codes."""

    title: str
    original: Float[ndarray, "mel_frames mels"]
    reconstruction: Float[ndarray, "other_mel_frames mels"]
    mel_rate_hz: float = 100.0


@dataclasses.dataclass(frozen=True)
class Audio:
    """A WAV file to play; files of one `group` are shown under one heading.

    If `path` is None nothing was said; the page says so.
    """

    group: str
    title: str
    path: Path | None
    text: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples that are shown beside the figures.

    Attributes:
      mel_pairs: originals and reconstructions.
      documents: a few rows of an interleaved folder (`segments` with `text` or `codes` and `text`).
      audio: WAV files, embedded in the page.
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
      warning: warning to read before the figures; "" for none.
      figures: figures by name, as in `evals.items`.
      provenance: timing, seeds, versions, fingerprints.
      claims: conditions on the figures; none if nothing is claimed (`--size micro`).
      chance: value of a guess, by prefix of a figure's name; the longest prefix applies.
      arms: names of the two models that are compared, the expected winner first; () for none.
      tiles: (figure, words) of the numbers at the page's top; those not measured are left out.
      notes: a sentence under a section's heading, by heading.
      trainings: training runs whose metrics.jsonl give the loss curves.
      codebook_counts: number of occurrences of each entry on held-out clips.
      exposure: exposure to facts, by arm and by class of facts.
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
