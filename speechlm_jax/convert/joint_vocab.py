"""The joint vocabulary of a text model: its own ids, specials that it has or lacks, and codes.

A model that speaks already, as GLM-4-Voice does, is taken over: it keeps its codes' ids.
"""

from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

from speechlm_jax.codes import CodesIdentity
from speechlm_jax.convert.tokenizers import CODE, UNUSED, extend_tokenizer, token_ids
from speechlm_jax.errors import UserError
from speechlm_jax.text import TextTokenizer
from speechlm_jax.vocab import SPECIALS, Vocab

# What released models call our specials, beside `<|name|>`; the first that is there is taken. None
# has a name for what follows transcribed or read speech ("asr", "tts").
TOKENS = {
    "bos": ("<sop>", "<|begin_of_text|>", "<s>"),
    "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>"),
    "begin_of_speech": ("<|begin_of_audio|>",),
    "end_of_speech": ("<|end_of_audio|>",),
}


def joint_vocab(
    text: TextTokenizer, codes: CodesIdentity, *, size: int, eos: str | None = None
) -> Vocab:
    """The joint vocabulary of a model; specials that its text vocabulary has are mapped, not added.

    Args:
      codes: identity of the codes to be used with it.
      size: rows of the model's table.
      eos: the token that ends its documents, where none of the known names is there.

    Raises:
      UserError: the text vocabulary has ids far beyond the table, a name that ours needs, or codes
        that are not in a row, not as many as `codes` has, or leave no room.
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
    extend_tokenizer(text.model, vocab)  # what an export would refuse is refused now
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
    """Specials that a model lacks take ids before its codes that no token uses.

    In an exported model of ours each id has a token: those that say they are unused count as none.
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
