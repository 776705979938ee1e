"""Runs `data.prepare.prepare` in a process of its own.

Usage: python -m speechlm_jax.quickstart.prepare_child NAME,NAME VOCAB.json TEXT.model OUT LENGTH
       SEED MODULE...
"""

import sys

from speechlm_jax import artifacts
from speechlm_jax.data.prepare import PrepareConfig, prepare
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE, UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import Vocab


def main(names: str, vocab: str, text: str, out: str, length: str, seed: str, *modules: str) -> int:
    """Prepares the mixtures named in `names`, and returns an exit code."""
    try:
        ids = Vocab.from_json(artifacts.read_json(vocab))
        tokenizer = TextTokenizer.load(text)
        for name in names.split(","):
            prepare(
                name,
                modules=modules,
                vocab=ids,
                tokenizer=tokenizer,
                out=out,
                config=PrepareConfig(length=int(length), seed=int(seed)),
                quiet=True,
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
