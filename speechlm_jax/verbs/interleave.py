"""A text file -> interleaved speech-text documents."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax.data.sources import read_rows
from speechlm_jax.errors import UserError
from speechlm_jax.evals.text_norm import normalize
from speechlm_jax.interleave.build import DOCUMENTS, InterleaveConfig, document_to_interleaved
from speechlm_jax.quickstart.models import spans_to_codes
from speechlm_jax.text import TextTokenizer
from speechlm_jax.text_to_token.synthesize import SynthesisConfig
from speechlm_jax.verbs.opening import open_run

_log = logging.getLogger("speechlm.interleave")


def interleave(
    file: str | Path,
    *,
    run: str | Path,
    out: str | Path,
    span_corruption_ratio: float = 0.3,
    mean_span_length: float = 10.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Replaces spans of words by codes (paper section 2.2); writes documents.jsonl, stage.json.

    Args:
      file: .txt (a document a line) or .jsonl (rows with "text", and "id" if they have one).
      run: a quickstart run's folder.
      out: the interleaved folder; a build that was interrupted goes on.
      span_corruption_ratio: fraction of the words that become speech.
      mean_span_length: in words.
      seed: of the spans.

    Raises:
      UserError: the file is missing, not UTF-8 or without words, or a number is out of range.
    """
    if not 0 <= span_corruption_ratio <= 1:
        raise UserError(f"--span-corruption-ratio {span_corruption_ratio}: must be from 0 to 1")
    if not mean_span_length > 0:
        raise UserError(f"--mean-span-length {mean_span_length}: must be above 0")
    models, file, out = open_run(run, batch_size=64), Path(file), Path(out)
    documents = _read_documents(file, models.voices)
    _warn_of_unknown_words(documents, models.text)
    text_to_token = models.make_text_to_token(SynthesisConfig())
    with tqdm(total=len(documents), desc="interleave", unit="document", disable=None) as bar:
        manifest = document_to_interleaved(
            documents,
            lambda requests: spans_to_codes(text_to_token, requests),
            out=out,
            config=InterleaveConfig(span_corruption_ratio, mean_span_length, seed),
            inputs={
                "documents": artifacts.sha256_file(file),
                "text_to_token": models.fingerprint(models.folders.text_to_token),
            },
            tokenizer=models.codes_identity,
            progress=bar.update,  # pyright: ignore[reportArgumentType]
        )
    return {"documents": str(out / DOCUMENTS), **manifest.counts}


def _warn_of_unknown_words(documents: Iterable[dict[str, Any]], text: TextTokenizer) -> None:
    words = {word for row in documents for word in row["text"].split()}
    unknown = sorted(word for word in words if text.decode(text.encode(word)) != word)
    if unknown:
        _log.warning(
            "%d of %d different words are not in the run's vocabulary (the first: '%s') and "
            "cannot be spoken",
            len(unknown),
            len(words),
            unknown[0],
        )


def _read_documents(file: Path, voices: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows {"id", "text", "speaker"} with normalised text; each voice takes its turn."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give documents in .txt or .jsonl")
    documents = []
    for row in read_rows(file):
        if not isinstance(row.get("text"), str):
            raise UserError(f'{file}: row {row["id"]!r} has no "text"; every document needs one')
        text = normalize(row["text"])
        if text:
            voice = voices[len(documents) % len(voices)]
            documents.append({"speaker": voice, **row, "id": str(row["id"]), "text": text})
    if not documents:
        raise UserError(f"{file}: holds no words; give documents in .txt or .jsonl")
    return documents
