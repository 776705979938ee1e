"""A finished run -> its report: figures, claims, exposure, timing and examples."""

import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from speechlm_jax import artifacts, shipped
from speechlm_jax import config as configs
from speechlm_jax.audio.mel import wav_to_mel
from speechlm_jax.audio.recordings import BAD
from speechlm_jax.audio.wav import read_wav
from speechlm_jax.data.formats import segments_to_text
from speechlm_jax.evals.codebook import code_counts, perplexity_figure
from speechlm_jax.evals.exposure import Exposure, count_exposure, statement_finder
from speechlm_jax.evals.items import Item, figures_from_items, read_items
from speechlm_jax.evals.suites.tokenizer import held_out_codes
from speechlm_jax.quickstart import clock, samples
from speechlm_jax.quickstart.claims import CHANCE, CLAIMS
from speechlm_jax.quickstart.run import ARMS, Chain, Quickstart
from speechlm_jax.quickstart.sizes import FULL
from speechlm_jax.report.inputs import (
    COMPARED,
    DUEL,
    Audio,
    Examples,
    MelPair,
    Provenance,
    ReportInputs,
    StepTime,
    Training,
)
from speechlm_jax.report.write import write_report

NOTHING_LEARNT = (
    "Micro size: every step ran, to see that it works, with models too small and trained too "
    "briefly to learn anything. No figure on this page says how well the method works."
)
PACKAGES = ("speechlm_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "numpy")
LAST = "last value"  # series of a panel with one curve
TRAININGS = (
    ("Speech tokenizer", LAST, "tokenizer"),
    ("Text-to-token model", LAST, "text_to_token"),
    ("Pre-training", "interleaved", "lm_interleaved"),
    ("Pre-training", "baseline", "lm_baseline"),
    ("Speech decoder", LAST, "speech_decoder"),
    ("Chat", LAST, "chat"),
)

TILES = (
    ("qa/s2t/interleaved", "of spoken questions right"),
    ("qa/s2t/baseline", "in the other arm"),
    ("tokenizer/wer", "tokenizer word errors"),
)
NOTES = {
    DUEL: (
        "A voice that nothing was trained on asks about a fact. The interleaved arm met the fact "
        "in documents of text with spans of speech; the baseline met the same documents as text "
        "alone. Both write and say what they make of it."
    ),
    COMPARED: (
        "Both arms start from the same weights and see as many tokens; only rows differ: "
        "interleaved documents in one, the same documents as text plus speech that states none of "
        "the facts in the other. Whiskers are 95% intervals (bootstrap by fact), the dashed line "
        "is a guess."
    ),
}


def write(q: Quickstart, *, command: str) -> None:
    """Writes report.json and report.html into the run's folder; `command` made the run."""
    items = all_items(q)
    codes = held_out_codes(q.spoken)
    counts = code_counts(codes, codebook_size=q.models.codes.codebook_size)
    figures = figures_from_items(items, arms=ARMS, seed=q.seed)
    figures["tokenizer/codebook_perplexity"] = perplexity_figure(
        codes, codebook_size=len(counts), seed=q.seed
    )
    is_full = q.config == FULL
    note = f"{'Full' if is_full else 'Micro'} size, world {q.world.fingerprint}, seed {q.seed}."
    write_report(
        q.folders.run,
        ReportInputs(
            title="Quickstart",
            note=note,
            figures=figures,
            provenance=provenance(
                q, {"world": q.world.fingerprint}, command=command, seeds={"world": q.world.seed}
            ),
            warning="" if is_full else NOTHING_LEARNT,
            claims=CLAIMS if is_full else (),
            chance=CHANCE,
            arms=ARMS,
            tiles=TILES,
            notes=NOTES,
            trainings=trainings(q, TRAININGS),
            codebook_counts=counts,
            exposure=_exposure(q),
            bad_recordings=tuple(artifacts.read_jsonl(q.folders.features / BAD)),
            examples=examples(q, items),
        ),
    )


def all_items(q: Chain) -> list[Item]:
    """Returns every scored item of the run."""
    folders = sorted(folder for folder in q.folders.items.iterdir() if folder.is_dir())
    return [item for folder in folders for item in read_items(folder)]


def trainings(q: Chain, panels: Sequence[tuple[str, str, str]]) -> tuple[Training, ...]:
    """Returns the loss curves of trainings, each given as (panel, series, name of its folder)."""
    return tuple(
        Training(panel, series, getattr(q.folders, folder)) for panel, series, folder in panels
    )


def provenance(
    q: Chain,
    made_from: Mapping[str, str],
    *,
    command: str,
    seeds: Mapping[str, int] | None = None,
) -> Provenance:
    """Returns when, how and from what a run was made.

    `made_from` has the fingerprints of the run's inputs, by name.
    """
    times = clock.totals(q.folders.timing)
    ended = (q.folders.audio / artifacts.MANIFEST).stat().st_mtime  # "audio" is the last step
    return Provenance(
        timing={
            name: StepTime(time["wall_seconds"], time["cpu_seconds"])
            for name, time in times.items()
        },
        seeds={"run": q.seed, **(seeds or {})},
        versions={"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        fingerprints={
            "config": configs.fingerprint(q.config),
            **made_from,
            **q.stage_fingerprints(),
        },
        command=command,
        commit=_commit(),
        date=datetime.datetime.fromtimestamp(ended, datetime.UTC).date().isoformat(),
    )


def _commit() -> str:
    """Returns the commit of this code's checkout, with "-dirty" if it was changed.

    Returns "" outside of a checkout or without git.
    """
    top = shipped.root()
    if not (top / ".git").exists():
        return ""
    command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _exposure(q: Quickstart) -> dict[str, dict[str, Exposure]]:
    """Counts how often each class of facts occurs in one pass over each arm's documents."""
    statements = {
        wording.format(person=fact.person, value=fact.value): fact.id
        for fact in q.world.facts
        for wording in q.world.tables.wordings(fact.attribute)
    }
    find = statement_finder(statements)
    classes = {fact.id: fact.kind for fact in q.world.facts}
    text = list(artifacts.read_jsonl(q.folders.documents / "text" / "documents.jsonl"))
    told = list(artifacts.read_jsonl(q.folders.interleaved / "documents.jsonl"))
    plain = [{"text": segments_to_text(row["segments"])} for row in told]
    rows: dict[str, list[dict[str, Any]]] = {ARMS[0]: [*text, *told], ARMS[1]: [*text, *plain]}
    return {arm: count_exposure(rows[arm], find=find, classes=classes) for arm in ARMS}


def examples(q: Chain, items: list[Item]) -> Examples:
    """Returns the examples that the report shows and plays."""
    listed = samples.read_samples(q.folders.audio)
    audio = [
        Audio(s.group, s.title, q.folders.audio / s.file if s.file else None, s.text)
        for s in listed
    ]
    return Examples(
        mel_pairs=_mel_pairs(q),
        documents=tuple(artifacts.read_jsonl(q.folders.interleaved / "documents.jsonl"))[:4],
        audio=tuple(audio),
        items=tuple(items),
    )


def _mel_pairs(q: Chain) -> tuple[MelPair, ...]:
    """Returns the spectrograms of the samples' originals and reconstructions."""
    listed = [s for s in samples.read_samples(q.folders.audio) if s.group == "Reconstructions"]
    mels = [wav_to_mel(read_wav(q.folders.audio / s.file), q.models.mel) for s in listed]
    pairs = zip(listed[::2], mels[::2], mels[1::2], strict=False)
    return tuple(MelPair(sample.text, first, second) for sample, first, second in pairs)
