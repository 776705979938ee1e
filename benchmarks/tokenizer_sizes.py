"""Parameters of Whisper and of speech tokenizers at every size, beside those of `transformers`.

    python benchmarks/tokenizer_sizes.py

Nothing is drawn: shapes alone, here and there (PyTorch's meta device; without the `oracles` extra
that column is left out). A codebook and frozen positions count, moving averages do not. Exit code
1 if a number differs, or if the released encoder's is not 343,599,360.
"""

import json
import sys
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from speechlm_jax.convert.whisper_config import config_to_json
from speechlm_jax.errors import EXIT_OK
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.sizes import (
    CODEBOOKS,
    SIZES,
    encoder_only,
    speech_tokenizer,
    whisper,
)
from speechlm_jax.speech_tokenizer.stage import functional

RELEASED = 343_599_360  # parameters of the encoder that is released with GLM-4-Voice
COUNTED = ("encoder/table", "quantizer/codebook")  # variables


def count(config: SpeechTokenizerConfig) -> int:
    """Returns the number of parameters of a model."""
    model = functional(config)
    variables = flatten_dict(model.variable_shapes, sep="/")
    held = [variables[path] for path in COUNTED if path in variables]
    return sum(leaf.size for leaf in [*jax.tree.leaves(model.shapes), *held])


def theirs(config: SpeechTokenizerConfig) -> int | None:
    """Returns the number that `transformers` has of a plain Whisper; None if it is not there."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    data = config_to_json(config, dtype="float32")
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**data))
    return model.num_parameters()


def measure() -> dict[str, Any]:
    """Returns all numbers, by size, and whether they are as they should be."""
    found: dict[str, Any] = {}
    for size in SIZES:
        plain = whisper(size)
        rates = {
            f"{rate:g} Hz": count(speech_tokenizer(size, frame_rate_hz=rate)) for rate in CODEBOOKS
        }
        found[size] = {"whisper": count(plain), "transformers": theirs(plain), **rates}
    released = count(encoder_only(speech_tokenizer("large-v3")))
    is_equal = all(row["transformers"] in (None, row["whisper"]) for row in found.values())
    return {
        "sizes": found,
        "released encoder": released,
        "equal": is_equal and released == RELEASED,
    }


def main() -> int:
    """Prints the numbers as JSON."""
    found = measure()
    print(json.dumps(found, indent=2))
    return EXIT_OK if found["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
