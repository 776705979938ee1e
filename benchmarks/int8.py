"""What int8 weights and an int8 cache change of a real model's replies, on real text.

    python benchmarks/real_weights.py smollm2 --out smollm2
    python benchmarks/int8.py smollm2

Rows are the first ids of documents: textbooks (`text_openstax`) and novels (`text_standardebooks`)
inside SPEECHLM_DATA (default: ../shared/data beside the checkout). Each way of decoding reads the
same rows through its cache. One JSON line for each: bytes that a step reads; to bfloat16 and to
float32 without int8, the Kullback-Leibler divergence of the next id's distribution (nats: mean,
99th percentile, most) and the share of ids whose likeliest successor is the same. Then each way
answers greedily from the beginnings of rows, and one line tells how far its replies agree.
"""

import argparse
import dataclasses
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from speechlm_jax.convert.language_model import read_config, read_params
from speechlm_jax.convert.safetensors_folder import Folder
from speechlm_jax.convert.tokenizers import read_tokenizer
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE, UserError
from speechlm_jax.nn.decoding_params import Weights, prepare
from speechlm_jax.nn.engine import empty_slots
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.text import TextTokenizer

CORPORA = ("text_openstax", "text_standardebooks")
LETTERS = 4000  # of a document that are looked at
ROWS_AT_ONCE = 4
NEW = 32  # ids of a greedy reply


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of decoding: the dtype of activations, and what is int8."""

    dtype: str
    int8_weights: bool
    int8_cache: bool


REFERENCES = [Way("bfloat16", False, False), Way("float32", False, False)]
WAYS = [
    *REFERENCES,
    Way("bfloat16", True, False),
    Way("bfloat16", False, True),
    Way("bfloat16", True, True),
]


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    try:
        folder = Folder(args.model)
        family, config = read_config(folder)
        params = read_params(folder, family, config, where=str(args.model))
        text = TextTokenizer(read_tokenizer(args.model))
        ids = read_rows(_data(), text, rows=args.rows, length=args.length)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    prompts = ids[:: max(1, len(ids) // args.prompts), : args.length // 2]
    lines = chain(divergences(config, params, ids), agreements(config, params, prompts))
    for line in lines:
        print(json.dumps(line), flush=True)
    return EXIT_OK


def read_rows(data: Path, text: TextTokenizer, *, rows: int, length: int) -> np.ndarray:
    """Returns the first ids of documents: as many of each corpus, spread over it, then mixed."""
    found: list[list[int]] = []
    for corpus in CORPORA:
        documents = [
            json.loads(line).get("text", "")
            for path in sorted((data / corpus).glob("*.jsonl.gz"))
            for line in gzip.open(path, "rt", encoding="utf-8")
        ]
        long = [ids for one in documents if len(ids := text.encode(one[:LETTERS])) >= length]
        wanted = rows // len(CORPORA)
        if len(long) < wanted:
            raise UserError(f"{data / corpus}: has {len(long)} documents of {length} ids")
        chosen = np.linspace(0, len(long) - 1, wanted).astype(int)
        found += [long[number][:length] for number in chosen]
    return np.random.default_rng(0).permutation(np.array(found, np.int32))


def divergences(
    config: LanguageModelConfig, params: Any, ids: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yields for each way what it reads in a step, and how its distributions differ."""
    readers = {way: make_reader(config, params, way, ids.shape[1]) for way in WAYS}
    told: dict[tuple[Way, Way], list[np.ndarray]] = {}
    for first in range(0, len(ids), ROWS_AT_ONCE):
        part = jnp.asarray(ids[first : first + ROWS_AT_ONCE])
        references = {way: readers[way](part) for way in REFERENCES}
        for way in WAYS:
            logprobs = references[way] if way in references else readers[way](part)
            for reference in REFERENCES:
                pair = np.asarray(compare(references[reference], logprobs))
                told.setdefault((way, reference), []).append(pair)
        print(f"{first + len(part)} of {len(ids)} rows", file=sys.stderr, flush=True)
    for way in WAYS:
        line: dict[str, Any] = {"rows": len(ids), "ids": ids.size, **dataclasses.asdict(way)}
        line |= count_bytes(config, params, way)
        for reference in REFERENCES:
            pairs = np.concatenate(told[way, reference], axis=1)
            line[f"to_{reference.dtype}"] = summarise(*pairs)
        yield line


def summarise(divergence: np.ndarray, agrees: np.ndarray) -> dict[str, float]:
    return {
        "kl_mean": float(f"{divergence.mean():.3g}"),
        "kl_p99": float(f"{np.quantile(divergence, 0.99):.3g}"),
        "kl_max": float(f"{divergence.max():.3g}"),
        "likeliest_agrees": round(float(agrees.mean()), 4),
    }


@jax.jit
def compare(reference: jax.Array, logprobs: jax.Array) -> jax.Array:
    """Divergence of each position, and whether the likeliest id is the same."""
    divergence = jnp.sum(jnp.exp(reference) * (reference - logprobs), axis=-1)
    agrees = jnp.argmax(reference, axis=-1) == jnp.argmax(logprobs, axis=-1)
    return jnp.stack([divergence.ravel(), agrees.ravel()])


def make_weights(config: LanguageModelConfig, params: Any, way: Way) -> Weights:
    config = dataclasses.replace(config, dtype=way.dtype)
    return prepare(config, params, int8=way.int8_weights)


def make_reader(
    config: LanguageModelConfig, params: Any, way: Way, length: int
) -> Callable[[jax.Array], jax.Array]:
    """Returns ids -> log-probabilities of the next id, read through a cache as in decoding."""
    weights = make_weights(config, params, way)

    @jax.jit
    def read(params: Any, ids: jax.Array) -> jax.Array:
        model = weights.model.bind(params)
        slots = empty_slots(weights.model.config, len(ids), length, int8_cache=way.int8_cache)
        hidden, _ = model.extend(ids, slots.cache)
        return jax.nn.log_softmax(model.logits(hidden))

    return partial(read, weights.params)


def count_bytes(config: LanguageModelConfig, params: Any, way: Way) -> dict[str, int]:
    """Bytes of weights that a step reads, and of the cache that it reads for each id before."""
    weights = jax.eval_shape(lambda params: make_weights(config, params, way).params, params)
    if "head" in weights:
        del weights["embedding"]  # a step reads a few rows of it
    plain = dataclasses.replace(config, dtype=way.dtype)
    slots = jax.eval_shape(lambda: empty_slots(plain, 1, 1, int8_cache=way.int8_cache))
    sizes = (weights, (slots.cache.k, slots.cache.v))
    weights, kept = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(each)) for each in sizes
    )
    return {"weights_bytes": weights, "cache_bytes_an_id": kept}


def agreements(
    config: LanguageModelConfig, params: Any, prompts: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yields for each way how far its greedy replies are those of the references."""
    requests = [GenerateRequest(row.tolist(), max_new=NEW) for row in prompts]
    replies = {}
    for way in WAYS:
        model = Inference(
            dataclasses.replace(config, dtype=way.dtype), params, batch_size=16,
            length=prompts.shape[1] + NEW, int8_weights=way.int8_weights,
            int8_cache=way.int8_cache,
        )  # fmt: skip
        replies[way] = np.array(model.generate(requests))
        print(f"{way}: answered", file=sys.stderr, flush=True)
    for way in WAYS:
        line: dict[str, Any] = {"prompts": len(prompts), "new": NEW, **dataclasses.asdict(way)}
        for reference in REFERENCES:
            same = np.cumprod(replies[way] == replies[reference], axis=1)
            line[f"to_{reference.dtype}"] = {
                "equal_replies": int(same[:, -1].sum()),
                "ids_before_a_difference": round(float(same.sum(axis=1).mean()), 2),
            }
        yield line


def _data() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared/data"
    return Path(os.environ.get("SPEECHLM_DATA", beside))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", metavar="DIR", type=Path, help="of Hugging Face, with a tokenizer")
    parser.add_argument("--rows", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="ids a row (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=50, help="default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
