"""Results of a run -> report.json, and report.html, which loads nothing from outside."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.errors import UserError
from speechlm_jax.evals.codebook import codebook_use
from speechlm_jax.evals.exposure import Exposure
from speechlm_jax.evals.items import Figure
from speechlm_jax.report.claims import judge
from speechlm_jax.report.inputs import Provenance, ReportInputs
from speechlm_jax.report.page import page

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def write_report(folder: str | Path, inputs: ReportInputs) -> None:
    """Writes `report.json` and `report.html` into a folder, each whole or not at all.

    Raises:
      UserError: a metrics.jsonl or a WAV file that the inputs name is missing or broken.
    """
    for audio in inputs.examples.audio:
        if audio.path is not None and not Path(audio.path).is_file():
            raise UserError(f"{audio.path}: the report's recording is missing; run its step again")
    html = page(inputs)
    artifacts.write_json(Path(folder) / REPORT_JSON, report_json(inputs))
    artifacts.write_bytes(Path(folder) / REPORT_HTML, html.encode())


def report_json(inputs: ReportInputs) -> dict[str, Any]:
    """Returns the report as plain data; `figures` maps names to value, low, high, count."""
    return {
        "title": inputs.title,
        "note": inputs.note,
        "warning": inputs.warning,
        **_provenance(inputs.provenance),
        "figures": {name: dataclasses.asdict(figure) for name, figure in inputs.figures.items()},
        "chance": dict(inputs.chance),
        "claims": [
            {**dataclasses.asdict(verdict.claim), "measured": verdict.measured, "met": verdict.met}
            for verdict in judge(inputs.claims, inputs.figures)
        ],
        "codebook": _codebook(inputs),
        "exposure": _exposure(inputs.exposure),
        "bad_recordings": [dict(row) for row in inputs.bad_recordings],
    }


def figures_from_json(report: Mapping[str, Any]) -> dict[str, Figure]:
    """Returns the figures of a `report.json`, to compare runs."""
    return {name: Figure(**figure) for name, figure in report["figures"].items()}


def _provenance(provenance: Provenance) -> dict[str, Any]:
    steps = {name: dataclasses.asdict(time) for name, time in provenance.timing.items()}
    total = {
        unit: sum(step[unit] for step in steps.values()) for unit in ("wall_seconds", "cpu_seconds")
    }
    return {
        "command": provenance.command,
        "commit": provenance.commit,
        "date": provenance.date,
        "seeds": dict(provenance.seeds),
        "versions": dict(provenance.versions),
        "fingerprints": dict(provenance.fingerprints),
        "timing": {"steps": steps, "total": total},
    }


def _codebook(inputs: ReportInputs) -> dict[str, Any] | None:
    counts = inputs.codebook_counts
    if counts is None:
        return None
    return {**dataclasses.asdict(codebook_use(counts)), "counts": counts.tolist()}


def _exposure(exposure: Mapping[str, Mapping[str, Exposure]]) -> dict[str, Any]:
    return {
        arm: {kind: dataclasses.asdict(count) for kind, count in classes.items()}
        for arm, classes in exposure.items()
    }
