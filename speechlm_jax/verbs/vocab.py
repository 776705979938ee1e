"""Text files -> a vocabulary that can encode any text, joined with the codes of a run."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_codes
from speechlm_jax.data.sources import Rows, read_rows, row_files
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer, make_vocab
from speechlm_jax.vocab_files import TEXT_MODEL, VOCAB, find_text

PIECE = 1000  # most characters of a piece that the vocabulary is trained on
MOST_PIECES = 100_000  # of a larger text, every second, fourth, ... piece is used


def vocab(
    files: Sequence[str | Path],
    *,
    run: str | Path,
    out: str | Path,
    size: int = 8000,
    field: str = "text",
    voices: str | Path | None = None,
) -> dict[str, Any]:
    """Trains a text vocabulary and writes it joined with codes; `out` can be `--run` of `prepare`.

    Args:
      files: .txt, .jsonl (both also .gz) or .parquet, or globs; rows of other splits than "train"
        are left out.
      run: a bundle or a folder of codes, whose codes the vocabulary has.
      out: folder of the vocabulary.
      size: maximum number of text ids.
      field: field of a row that holds the text.
      voices: folder of codes whose speakers each get an id, for the rows of a text-to-token model.

    Raises:
      UserError: there is no text, it has more characters than `size` has room for, or `out` is in
        use.
    """
    rows = Rows(tuple(files), False, {"text": field}, validation_ratio=0.0)
    its_files, out = rows.files(), Path(out)
    codes = open_codes(run)
    texts = (example["text"] for example in rows.examples(its_files, "train"))
    pieces = _thinned((piece for text in texts for piece in text_to_pieces(text)), MOST_PIECES)
    text = TextTokenizer.train(pieces, kind="exact", size=size)
    made = make_vocab(text, codes, voices=() if voices is None else _speakers(Path(voices)))
    _write(out, text, made.to_json())
    return {
        "vocab": str(out),
        "ids": {"text": made.text_size, "all": made.size, "codes_from": made.speech_offset},
        "learnt_from": {"files": len(its_files), "characters": sum(map(len, pieces))},
        "voices": list(made.voices),
        "vocabulary": made.fingerprint,
    }


def _speakers(folder: Path) -> tuple[str, ...]:
    """Returns the sorted speakers of a codes folder's rows; raises UserError if there are none."""
    files = row_files(folder, artifacts.read_manifest(folder).kind)
    named = (row.get("speaker") for file in files for row in read_rows(file))
    found = sorted({name for name in named if isinstance(name, str) and name})
    if not found:
        raise UserError(f"--voices {folder}: its rows name no speaker; tokenize with a manifest")
    return tuple(found)


def text_to_pieces(text: str) -> Iterator[str]:
    """Yields a text in pieces of at most `PIECE` characters, cut before a blank if there is one."""
    at = 0
    while at < len(text):
        end = at + PIECE
        if end < len(text) and (blank := text.rfind(" ", at + 1, end)) > 0:
            end = blank
        yield text[at:end]
        at = end


def _thinned(pieces: Iterable[str], most: int) -> list[str]:
    """Returns at most `most` of the pieces, evenly spread over all of them."""
    kept: list[str] = []
    step = 1
    for number, piece in enumerate(pieces):
        if number % step == 0:
            kept.append(piece)
        if len(kept) > most:
            kept, step = kept[::2], 2 * step
    return kept


def _write(out: Path, text: TextTokenizer, made: dict[str, Any]) -> None:
    """Writes the vocabulary; raises UserError if the folder holds another one or a run."""
    known = out / VOCAB
    if known.is_file():
        is_other = artifacts.read_json(known) != made
    else:
        is_other = bool(find_text(out))
    if is_other:
        raise UserError(f"--out {out}: holds another vocabulary; give a new folder")
    text.save(out / TEXT_MODEL)
    artifacts.write_json(known, made)
