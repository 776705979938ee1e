"""Words a second that one core interleaves, without the text-to-token model.

    python benchmarks/interleave.py

The documents have 100 words, 1,000 words, and a million words. Words are drawn by Zipf's law from
50,000, some of which cannot be said or have a comma and a line end. The time includes everything
from rows to finished rows: words, spans, assembly. Speech is replaced by one code a span, and so is
the words' normal form, which is looked up once for each different word. Seconds are CPU time of
this process, the best of some turns. Prints one JSON object for each length.
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from speechlm_jax.interleave.build import InterleaveConfig, SpanRequest, interleave_batch
from speechlm_jax.interleave.words import Lexicon

WORDS = 50_000


def main() -> None:
    """Times documents of 100, 1,000 and 1,000,000 words, a million words in total each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--words", type=int, default=1_000_000, help="in all (default: %(default)s)"
    )
    parser.add_argument(
        "--turns", type=int, default=5, help="the best counts (default: %(default)s)"
    )
    arguments = parser.parse_args()
    for length in (100, 1_000, arguments.words):
        seconds = min(time_documents(length, arguments.words // length, arguments.turns))
        result = {
            "document_words": length,
            "documents": arguments.words // length,
            "cpu_seconds": round(seconds, 3),
            "words_per_second": round(arguments.words / seconds),
        }
        print(json.dumps(result), flush=True)


def time_documents(length: int, count: int, turns: int) -> list[float]:
    """Returns the CPU seconds of each turn over `count` documents of `length` words."""
    rows, config = make_rows(length, count), InterleaveConfig()
    size = config.batch_documents
    seconds = []
    for _ in range(turns):
        lexicon = Lexicon(say)
        start = time.process_time()
        for first in range(0, count, size):
            interleave_batch(rows[first : first + size], speak, lexicon, config)
        seconds.append(time.process_time() - start)
    return seconds


def make_rows(length: int, count: int) -> list[dict[str, Any]]:
    """Returns `count` documents of `length` words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, n)) for n in rng.integers(2, 10, WORDS)]
    words[39::40] = [f"${number}.50" for number in range(len(words[39::40]))]
    words[14::15] = [f"{word},\n" for word in words[14::15]]
    chosen = np.minimum(rng.zipf(1.2, count * length), WORDS) - 1
    drawn = [words[number] for number in chosen.tolist()]
    return [
        {"id": f"d{i}", "text": " ".join(drawn[i * length : (i + 1) * length])}
        for i in range(count)
    ]


def say(word: str) -> str | None:
    """Returns the word without its comma; None for a price."""
    return None if "$" in word else word.strip(",")


def speak(requests: list[SpanRequest]) -> list[list[int]]:
    """Returns one code for each span."""
    return [[1]] * len(requests)


if __name__ == "__main__":
    main()
