"""Joint vocabulary of a text model: its own ids, the specials that it lacks, and codes.

A model that has codes already, such as GLM-4-Voice, keeps their ids.
"""

from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

from speechlm_jax.codes import CodesIdentity
from speechlm_jax.convert.tokenizers import CODE, UNUSED, extend_tokenizer, token_ids
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import SPECIALS, Vocab

# Names of our specials in released models, besides `<|name|>`; the first that exists is used. No
# model has a name for the markers of the tasks "asr" and "tts".
TOKENS = {
    "bos": ("<sop>", "<|begin_of_text|>", "<s>"),
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>"),
    "begin_of_speech": ("<|begin_of_audio|>",),
    "end_of_speech": ("<|end_of_audio|>",),
}


def joint_vocab(
    text: TextTokenizer, codes: CodesIdentity, *, size: int, eos: str | None = None
) -> Vocab:
    """Returns a model's joint vocabulary; specials of its text vocabulary are mapped, not added.

    Args:
      codes: identity of the codes to be used with the model.
      size: number of rows of the model's embedding table.
      eos: token that ends its documents, used if none of the known names exists.

    Raises:
      UserError: the text vocabulary has ids far beyond the table or a name that ours needs; or its
        codes are not consecutive, differ in number from those of `codes`, or leave no room for
        specials.
    """
    ids = token_ids(text.model)
    last = max(ids.values(), default=-1)
    if last >= max(size, len(ids)):
        raise UserError(
            f"text vocabulary: has an id {last}; the model has {size} rows, the text vocabulary "
            f"{len(ids)} tokens"
        )
    identity = {
        "codebook_size": codes.codebook_size,
        "frame_rate_hz": codes.frame_rate_hz,
        "text_fingerprint": text.fingerprint,
        "tokenizer_fingerprint": codes.tokenizer,
        "mapped": _mapped(ids, eos),
    }
    if CODE.format(0) in ids:
        vocab = _spoken(ids, identity, size)
    else:
        vocab = Vocab(text_size=max(size, last + 1), **identity)
    extend_tokenizer(text.model, vocab)  # raises now the errors that an export would raise
    return vocab


def _mapped(ids: Mapping[str, int], eos: str | None) -> tuple[tuple[str, int], ...]:
    known = {name: [f"<|{name}|>", *TOKENS.get(name, ())] for name in SPECIALS}
    if eos is not None and not any(eos in tokens for tokens in known.values()):
        known["eos"].append(eos)
    found = {
        name: [ids[token] for token in tokens if token in ids] for name, tokens in known.items()
    }
    return tuple((name, there[0]) for name, there in found.items() if there)


def _spoken(ids: Mapping[str, int], identity: Mapping[str, Any], size: int) -> Vocab:
    """Returns the joint vocabulary of a model with codes; missing specials take ids before these.

    Only ids without a token are taken. In a model that we exported, each id has a token: tokens
    that are named as unused do not count.
    """
    found = [ids[name] for name in takewhile(ids.__contains__, map(CODE.format, count()))]
    first, number = found[0], identity["codebook_size"]
    if found != list(range(first, first + number)):
        raise UserError(
            f"the model has {len(found)} codes from id {first} on; --run has a codebook of {number}"
        )
    taken = [id_ for name, id_ in ids.items() if name != UNUSED.format(id_)]
    text_size = 1 + max((id_ for id_ in taken if id_ < first), default=-1)
    spare = first - text_size - (len(SPECIALS) - len(identity["mapped"]))
    if spare < 0 or max(taken) > found[-1] or size <= found[-1]:
        raise UserError(f"the model's ids around its codes ({first} to {found[-1]}) are all taken")
    return Vocab(text_size=text_size, num_spare=spare, pad_to_multiple=size, **identity)
