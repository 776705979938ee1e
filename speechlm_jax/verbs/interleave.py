"""A text file -> interleaved speech-text documents."""

import datetime
import decimal
import difflib
import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.bundle.models import spans_to_codes
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.data.sources import numbered_rows
from speechlm_jax.errors import UserError
from speechlm_jax.interleave.build import DOCUMENTS, InterleaveConfig, document_to_interleaved
from speechlm_jax.interleave.documents import BAD, document_digest, good_documents
from speechlm_jax.text_to_token.synthesize import SynthesisConfig
from speechlm_jax.verbs.devices import decoding_mesh
from speechlm_jax.verbs.paths import check_documents, check_out_folder

_PRINTED = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)
MOST_TOLD = 10  # most rows set aside that are logged one by one; the file lists all
_log = logging.getLogger("speechlm.interleave")


def interleave(
    file: str | Path,
    *,
    run: str | Path,
    out: str | Path,
    span_corruption_ratio: float = 0.3,
    mean_span_length: float = 10.0,
    seed: int = 0,
    tensor: int = 1,
) -> dict[str, Any]:
    """Replaces spans of words by codes (paper section 2.2).

    Writes documents.jsonl, bad.jsonl (rows set aside, with reasons) and stage.json. A document's
    spans, voice and codes depend only on its text, its id (if it has one) and the seed.

    Args:
      file: .txt (a document a line), .jsonl (rows with "text", and optional "id" and "speaker") or
        .parquet.
      run: a bundle (see `bundle.open.open_bundle`).
      out: the interleaved folder; an interrupted build continues.
      span_corruption_ratio: fraction of the sayable words that become speech.
      mean_span_length: mean length of a span, in words.
      seed: seed of spans, voices and sampling.
      tensor: see `devices.decoding_mesh`.

    Raises:
      UserError: the file is missing, not UTF-8 or without a document, a speaker is none of the
        run's voices, or a number is out of range.
    """
    file, out = Path(file), Path(out)
    config = InterleaveConfig(span_corruption_ratio, mean_span_length, seed)
    _check(file, out)
    models = open_bundle(run, batch_size=64, mesh=decoding_mesh(tensor))
    synthesis = SynthesisConfig()
    bad: list[dict[str, Any]] = []
    documents = _read_documents(file, models.voices, bad, seed=seed)
    make_model = functools.cache(lambda: models.make_text_to_token(synthesis))
    with tqdm(total=len(documents), desc="interleave", unit="document", disable=None) as bar:
        manifest = document_to_interleaved(
            documents,
            lambda requests: spans_to_codes(make_model(), requests),
            say=models.say,
            out=out,
            config=config,
            inputs={
                "documents": artifacts.sha256_file(file),
                "text_to_token": models.fingerprint("text_to_token"),
                "synthesis": configs.fingerprint(synthesis),
            },
            codes=models.codes,
            bad=bad,
            progress=bar.update,  # pyright: ignore[reportArgumentType]
        )
    unsayable, words = manifest.counts["unsayable_words"], manifest.counts["words"]
    if unsayable:
        _log.warning(
            "%d of %d words cannot be said by the run's text-to-token model: they stay text",
            unsayable, words,
        )  # fmt: skip
    return {"interleaved": str(out / DOCUMENTS), "set_aside": str(out / BAD), **manifest.counts}


def _check(file: Path, out: Path) -> None:
    """Raises UserError if the file is missing or would be overwritten, or if `out` is a file."""
    check_documents(file)
    check_out_folder(out)
    if file.resolve() in ((out / name).resolve() for name in (DOCUMENTS, BAD)):
        raise UserError(f"--out {out}: {file} would be overwritten; give another folder")


def _read_documents(
    file: Path, voices: Sequence[str], bad: list[dict[str, Any]], *, seed: int
) -> list[dict[str, Any]]:
    """Returns rows {"id", "text", "speaker"}; documents without a speaker get one of the voices."""
    documents = []
    for row in good_documents(_placed_rows(file, bad), bad):
        if row.get("speaker") in (None, ""):
            digest = document_digest(row, seed=seed)
            number = int.from_bytes(digest[32:40], "little") % len(voices)
            row = {**row, "speaker": voices[number]}
        documents.append(row)
    _tell(file, bad)
    if not documents:
        first = f"; the first of {len(bad)} set aside: {bad[0]['reason']}" if bad else ""
        raise UserError(f"{file}: holds no document{first}")
    _check_speakers(file, documents, voices)
    return documents


def _placed_rows(file: Path, bad: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in numbered_rows(file):
        place = f"{file.name}:{number}"
        if isinstance(row, UserError):
            bad.append({"place": place, "reason": str(row)})
        else:
            # Values of Parquet that JSON cannot represent are kept as text.
            yield place, {k: str(v) if isinstance(v, _PRINTED) else v for k, v in row.items()}


def _tell(file: Path, bad: Sequence[dict[str, Any]]) -> None:
    for row in bad[:MOST_TOLD]:
        _log.warning("set aside: %s", row["reason"])
    if len(bad) > MOST_TOLD:
        _log.warning("%s: %d rows are set aside; %s lists them", file, len(bad), BAD)


def _check_speakers(file: Path, documents: Iterable[dict[str, Any]], voices: Sequence[str]) -> None:
    """Raises UserError if a document's speaker is no voice; the message suggests the nearest."""
    known = set(voices)
    for row in documents:
        if not isinstance(row["speaker"], str) or row["speaker"] not in known:
            name = str(row["speaker"])
            near = difflib.get_close_matches(name, voices, n=1, cutoff=0.0)
            raise UserError(
                f"{file}: row {row['id']!r}: speaker {name!r} is none of the run's {len(voices)} "
                f"voices; did you mean '{near[0]}'?"
            )
