"""ReportInputs -> one HTML page that loads nothing from outside."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.evals.codebook import codebook_use
from speechlm_jax.evals.items import MARGIN, by_figure
from speechlm_jax.evals.suites.held_out import LOSSES
from speechlm_jax.report import charts, examples
from speechlm_jax.report.chain import chain_picture
from speechlm_jax.report.claims import Verdict, chance_of, judge
from speechlm_jax.report.inputs import COMPARED, DUEL, Provenance, ReportInputs, Training

TEMPLATE = Path(__file__).with_name("template.html")
ANSWERED = ("qa/s2t_new_wording", "qa/s2t", "qa/s2s")  # answers shown side by side
PAPER = "https://arxiv.org/abs/2411.17607"
_ERRORS = ("wer", "entity_wer", "abx", "clipped")  # prefixes of the names of error figures
_LESS, _MORE, _CONTROL = "Errors: less is better", "More is better", "With codes of another clip"


def page(inputs: ReportInputs) -> str:
    """Returns the whole page, without sections that have nothing to show."""
    verdicts = judge(inputs.claims, inputs.figures)
    shown = inputs.examples
    duel = [clip for clip in shown.audio if clip.group == DUEL]
    others = [clip for clip in shown.audio if clip.group != DUEL]
    sections = (
        ("The chain", "", chain_picture(inputs.figures)),
        (DUEL, "", examples.players(duel, headings=False)),
        (COMPARED, "", _arms(inputs)),
        ("What had to hold", "", _claims(verdicts)),
        ("Single figures", _SINGLE_NOTE, _single_figures(inputs)),
        ("Listen", "", examples.players(others)),
        ("Through the codes and back", _MEL_NOTE, examples.mel_pairs(shown.mel_pairs)),
        ("Interleaved examples", _INTERLEAVED_NOTE, examples.documents(shown.documents)),
        (
            "Answers side by side",
            "",
            examples.answers(by_figure(shown.items), ANSWERED, arms=inputs.arms),
        ),
        ("Codebook", "", _codebook(inputs)),
        ("Training", "", _trainings(inputs.trainings, arms=inputs.arms)),
        ("How often facts were met", "", _exposure(inputs)),
        ("Recordings set aside", "", _bad_recordings(inputs.bad_recordings)),
        ("Where this comes from", "", _provenance(inputs)),
    )
    told = [
        (heading, inputs.notes.get(heading, note), body) for heading, note, body in sections if body
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(inputs.title),
        origin=_origin(inputs.provenance),
        warning=f'<p class="warning">{escape(inputs.warning)}</p>' if inputs.warning else "",
        note=escape(inputs.note),
        tiles=_tiles(inputs, verdicts),
        contents=_contents([heading for heading, _, _ in told]),
        sections="".join(_section(*section) for section in told),
    )


_SINGLE_NOTE = "Value, 95% interval and number of items. The solid mark is the bar to meet."
_MEL_NOTE = "Log-mel of a held-out clip, and of what the speech decoder makes of its codes."
_INTERLEAVED_NOTE = (
    "What the language model reads: words, and spans that the text-to-token model turned "
    "into codes (the stripes; one stripe is 80 ms at 12.5 codes a second)."
)


def _origin(provenance: Provenance) -> str:
    """Draws the line with project, paper, commit, date and command."""
    version = provenance.versions.get("speechlm_jax", "")
    project = " ".join(["speechlm_jax", version]).strip()
    commit = f"commit {provenance.commit}" if provenance.commit else ""
    parts = [escape(part) for part in (project, commit, provenance.date) if part]
    parts.insert(1, f'method of <a href="{PAPER}">Zeng et al., arXiv 2411.17607</a>')
    command = f"<br><code>{escape(provenance.command)}</code>" if provenance.command else ""
    return f'<p class="origin">{" · ".join(parts)}{command}</p>'


def _contents(headings: Sequence[str]) -> str:
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in headings)
    return f'<nav aria-label="Contents">{links}</nav>'


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower())


def _section(heading: str, note: str, body: str) -> str:
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section id="{_anchor(heading)}"><h2>{escape(heading)}</h2>{told}{body}</section>'


def _tiles(inputs: ReportInputs, verdicts: Sequence[Verdict]) -> str:
    """Draws the few numbers at the top."""
    tiles = []
    bars = [verdict for verdict in verdicts if verdict.claim.kind == "bar"]
    if bars:
        met = sum(verdict.met is True for verdict in bars)
        tiles.append((f"{met} of {len(bars)}", "bars met"))
    for name, words in inputs.tiles:
        if name in inputs.figures:
            tiles.append((charts.percent(inputs.figures[name].value), words))
    seconds = sum(time.wall_seconds for time in inputs.provenance.timing.values())
    if seconds:
        tiles.append((duration(seconds), "in all"))
    return "".join(
        f'<div class="tile"><strong>{escape(number)}</strong><span>{escape(words)}</span></div>'
        for number, words in tiles
    )


def _arms(inputs: ReportInputs) -> str:
    if len(inputs.arms) != 2:
        return ""
    first, second = inputs.arms
    chart = charts.arms_chart(inputs.figures, inputs.chance, arms=inputs.arms)
    key = f'<p class="key"><span class="{first}">{first}</span><span class="{second}">'
    return f"{key}{second}, the other arm</span></p>{chart}" if chart else ""


def _claims(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        yes, no = ("met", "missed") if claim.kind == "bar" else ("shown", "not shown")
        state = "not measured" if verdict.met is None else yes if verdict.met else no
        mark = "good" if verdict.met else "open" if claim.kind == "finding" else "bad"
        part = "" if claim.part == "value" else f"{claim.part} end "
        measured = (
            "–"
            if verdict.measured is None
            else part + charts.amount(claim.figure, verdict.measured)
        )
        decibels = claim.figure.endswith("_db")
        bar = f"{claim.bar:g} dB" if decibels else charts.exact_percent(claim.bar)
        rows.append(
            f'<li><span class="state {mark}">{state}</span><span>{escape(claim.text)}<br>'
            f"<code>{escape(claim.figure)}</code></span>"
            f'<span class="num"><strong>{measured}</strong>'
            f"<small>{escape(claim.rule)} {bar}</small></span></li>"
        )
    return f'<ul class="claims">{"".join(rows)}</ul>' if rows else ""


def _single_figures(inputs: ReportInputs) -> str:
    """Draws fractions that belong to no arm: errors, controls with exchanged codes, the rest."""
    bars = {c.figure: c.bar for c in inputs.claims if c.part == "value"}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, figure in inputs.figures.items():
        is_arm = name.rpartition("/")[2] in (*inputs.arms, MARGIN)
        is_fraction = 0 <= figure.value <= 1 and not name.startswith(LOSSES)
        if is_arm or name.endswith("_db") or not is_fraction:
            continue
        group = _group(name)
        row = charts.rate_row(
            figure,
            kind="errors" if group == _LESS else "single" if group == _MORE else "baseline",
            name=charts.label(name),
            chance=chance_of(name, inputs.chance),
            bar=bars.get(name),
        )
        groups[group].append(row)
    return "".join(
        f'<div class="duel wide-names"><h3>{escape(heading)}</h3>{"".join(rows)}</div>'
        for heading, rows in groups.items()
    )


def _group(name: str) -> str:
    last = name.rpartition("/")[2]
    return _CONTROL if last.endswith("_shuffled") else _LESS if last.startswith(_ERRORS) else _MORE


def _codebook(inputs: ReportInputs) -> str:
    counts = inputs.codebook_counts
    if counts is None:
        return ""
    use = codebook_use(counts)
    return (
        f'<p class="note">{int((counts > 0).sum())} of {len(counts)} entries are used on held-out '
        f"clips ({charts.percent(use.codebook_usage)}); perplexity "
        f"{use.codebook_perplexity:.0f}. Dashed: all used alike.</p>{charts.codebook_chart(counts)}"
    )


def read_curves(workdir: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns a training run's losses by name, as (step, value): `loss` and `held_out/...`."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in artifacts.read_jsonl(Path(workdir) / "metrics.jsonl"):
        for name, value in row.items():
            if re.fullmatch("loss|held_out/[^/]+", name):
                curves[name].append((float(row["step"]), float(value)))
    return dict(curves)


def _trainings(trainings: Sequence[Training], *, arms: Sequence[str]) -> str:
    """Draws a small panel for each loss of each group of runs; runs of a group share it."""
    panels: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for training in trainings:
        for name, curve in read_curves(training.workdir).items():
            panels[training.panel, name][training.series] = curve
    drawn = "".join(
        charts.line_chart(f"{panel}: {_loss_of(name)}", curves, arms=arms)
        for (panel, name), curves in panels.items()
    )
    return f'<div class="panels">{drawn}</div>' if drawn else ""


def _loss_of(name: str) -> str:
    """Returns the title of a loss curve; for `held_out/q_asr`, the label of that task."""
    if not name.startswith("held_out/"):
        return "loss"
    return f"{charts.label(name.removeprefix('held_out/'))}, held out"


def _exposure(inputs: ReportInputs) -> str:
    rows = [
        (arm, kind.replace("_", " "), e.facts, e.facts_as_text, e.as_text, e.as_speech, e.across)
        for arm, classes in inputs.exposure.items()
        for kind, e in classes.items()
    ]
    head = ("Arm", "Class", "Facts", "met as text", "Statements: text", "speech", "across both")
    return _table(head, rows)


def _bad_recordings(rows: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ("Recording", "Why"),
        [(row.get("audio") or row.get("id", "?"), row.get("reason", "")) for row in rows],
    )


def _provenance(inputs: ReportInputs) -> str:
    provenance: Provenance = inputs.provenance
    timing = [
        (name, duration(time.wall_seconds), duration(time.cpu_seconds))
        for name, time in provenance.timing.items()
    ]
    figures = [
        (name, *(f"{x:.3f}" for x in (figure.value, figure.low, figure.high)), figure.count)
        for name, figure in inputs.figures.items()
    ]
    folds = (
        ("Time of each step", _table(("Step", "Wall", "CPU"), timing)),
        ("All figures", _table(("Figure", "value", "low", "high", "count"), figures)),
        ("Seeds", _table(("Of", "Seed"), list(provenance.seeds.items()))),
        ("Versions", _table(("Package", "Version"), list(provenance.versions.items()))),
        ("Fingerprints", _table(("Of", "Fingerprint"), list(provenance.fingerprints.items()))),
    )
    return "".join(
        f"<details><summary>{escape(heading)}</summary>{body}</details>"
        for heading, body in folds
        if body
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""

    def cell(value: object) -> str:
        kind = ' class="num"' if isinstance(value, int | float) else ""
        text = f"{value:,}" if kind else str(value)
        return f"<td{kind}>{escape(text)}</td>"

    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><tr>{names}</tr>{body}</table></div>'


def duration(seconds: float) -> str:
    """Formats seconds: 47 s, 3 min 20 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
