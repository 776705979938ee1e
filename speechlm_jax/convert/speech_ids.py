"""The vocabulary of a model that speaks already, as GLM-4-Voice does: taken over, not extended."""

import json
from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import SPECIALS, Vocab

CODE = "<|audio_{}|>"
# GLM-4-Voice's names; it has none for what follows transcribed or read speech ("asr", "tts").
TOKENS = {
    "bos": "<sop>",
    "eos": "<|endoftext|>",
    "begin_of_speech": "<|begin_of_audio|>",
    "end_of_speech": "<|end_of_audio|>",
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
}


def spoken_vocab(text: TextTokenizer, codes: Mapping[str, Any], *, size: int) -> Vocab | None:
    """The joint vocabulary that a model has; None if its text vocabulary holds no codes.

    Specials that it lacks take ids before its codes that no token uses.

    Args:
      codes: `tokenizer`, `frame_rate_hz` and `codebook_size` of the codes to be used with it.
      size: rows of the model's table.

    Raises:
      UserError: its codes are not in a row, not as many as `codes` has, or leave no room.
    """
    ids = _token_ids(text)
    if CODE.format(0) not in ids:
        return None
    found = [ids[name] for name in takewhile(ids.__contains__, map(CODE.format, count()))]
    first, number = found[0], codes["codebook_size"]
    if found != list(range(first, first + number)):
        raise UserError(
            f"the model has {len(found)} codes from id {first} on; --run has a codebook of {number}"
        )
    mapped = tuple((name, ids[token]) for name, token in TOKENS.items() if token in ids)
    text_size = 1 + max(id_ for id_ in ids.values() if id_ < first)
    spare = first - text_size - (len(SPECIALS) - len(mapped))
    if spare < 0 or max(ids.values()) > found[-1] or size <= found[-1]:
        raise UserError(f"the model's ids around its codes ({first} to {found[-1]}) are all taken")
    return Vocab(
        text_size=text_size,
        codebook_size=number,
        frame_rate_hz=codes["frame_rate_hz"],
        text_fingerprint=text.fingerprint,
        tokenizer_fingerprint=codes["tokenizer"],
        mapped=mapped,
        num_spare=spare,
        pad_to_multiple=size,
    )


def _token_ids(text: TextTokenizer) -> dict[str, int]:
    data = json.loads(text.model)
    return {token["content"]: token["id"] for token in data["added_tokens"]} | data["model"][
        "vocab"
    ]
