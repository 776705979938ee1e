"""Suite for interleaved documents: their spoken spans are read back."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from speechlm_jax.evals.items import Item
from speechlm_jax.evals.spoken_qa import ReadCodes
from speechlm_jax.evals.wer import Reading, wer_items


def span_items(documents: Iterable[Mapping[str, Any]], read: ReadCodes, *, most: int) -> list[Item]:
    """Scores the WER of the first `most` spoken spans, as the language model is trained on them."""
    told = (segment for row in documents for segment in row["segments"] if "codes" in segment)
    spans = list(islice(told, most))
    heard = read([span["codes"] for span in spans])
    return wer_items(
        "interleaved/wer",
        [Reading(span["text"], text) for span, text in zip(spans, heard, strict=True)],
    )
