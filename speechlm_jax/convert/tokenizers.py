"""Text vocabularies of released models: tiktoken ranks -> tokenizer.json, and additional ids.

GLM-4 is released with tiktoken ranks. As a tokenizer.json, every text vocabulary is one file that
training and `transformers` read.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from speechlm_jax.convert.folder_files import has, inside, read_object, shown
from speechlm_jax.errors import UserError
from speechlm_jax.vocab import SPECIALS, Vocab

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TIKTOKEN = "tokenizer.model"
CODE = "<|audio_{}|>"
UNUSED = "<|unused_{}|>"  # the token of an id that has no other
LONGEST_PIECE = 1024  # bytes; released ranks have 128 at most
# The pattern by which GLM-4 (like cl100k_base) splits text before it merges pieces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tokenizer(folder: str | Path) -> bytes:
    """Returns the text vocabulary of a released model, as the bytes of a tokenizer.json.

    Raises:
      UserError: the folder has neither tokenizer.json nor tiktoken ranks, or they are broken.
    """
    folder = Path(folder)
    if has(folder, FILE):
        model = inside(folder, FILE).read_bytes()
        _open(model, str(folder / FILE))
        return model
    if not has(folder, TIKTOKEN):
        raise UserError(f"{folder}: has neither {FILE} nor {TIKTOKEN} (tiktoken ranks)")
    specials = _tiktoken_specials(folder) if has(folder, CONFIG) else {}
    ranks = read_ranks(inside(folder, TIKTOKEN))
    model = json.dumps(ranks_to_json(ranks, specials), ensure_ascii=False).encode()
    _open(model, str(folder / TIKTOKEN))
    return model


def token_ids(model: bytes) -> dict[str, int]:
    """Returns the id of every token in a tokenizer.json.

    The library that reads the file changes the ids of tokens after a gap; `extend_tokenizer` fills
    gaps and checks the ids.
    """
    data = json.loads(model)
    pieces = data["model"]["vocab"]
    if not isinstance(pieces, dict):  # the list of a Unigram model, with scores
        pieces = {piece: id_ for id_, (piece, _) in enumerate(pieces)}
    return pieces | {token["content"]: token["id"] for token in data.get("added_tokens", [])}


def _open(model: bytes, where: str) -> Tokenizer:
    try:
        json.loads(model)  # the library also accepts some text that is not JSON
        return Tokenizer.from_str(model.decode())
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library's Rust code is no Exception
        raise UserError(f"{where}: is no text vocabulary ({shown(error)})") from None


def _tiktoken_specials(folder: Path) -> dict[str, int]:
    added = read_object(folder, CONFIG).get("added_tokens_decoder", {})
    try:
        found = {entry["content"]: int(id_) for id_, entry in added.items()}
        if all(isinstance(content, str) for content in found):
            return found
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise UserError(
        f"{folder / CONFIG}: added_tokens_decoder is no object of ids and tokens with a content"
    )


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads tiktoken's file, which has a piece in base64 and its rank on each line."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        pairs = [line.split() for line in lines if line]
        ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in pairs}
    except ValueError:
        raise UserError(f"{path}: holds no tiktoken ranks (a piece in base64, its rank)") from None
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise UserError(f"{path}: holds no tiktoken ranks: a byte has none")
    if max(map(len, ranks)) > LONGEST_PIECE:
        raise UserError(f"{path}: has a piece of more than {LONGEST_PIECE} bytes")
    return ranks


def ranks_to_json(ranks: Mapping[bytes, int], specials: Mapping[str, int]) -> dict[str, Any]:
    """Returns the data of a tokenizer.json that splits and merges as tiktoken with these ranks."""
    letters = _byte_letters()
    written = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
    merges = []
    for piece in sorted(ranks, key=ranks.__getitem__):
        if len(piece) > 1:
            left, right = _last_merge(piece, ranks)
            merges.append([written[left], written[right]])
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(specials),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [split, {**level, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {written[piece]: rank for piece, rank in ranks.items()},
            "merges": merges,
        },
    }  # fmt: skip


def extend_tokenizer(model: bytes, vocab: Vocab) -> bytes:
    """Returns a tokenizer.json with a token for every id of a joint vocabulary.

    Ids that have no use are `<|unused_N|>`; codes are `<|audio_N|>`, as in GLM-4-Voice. Tokens of
    the text vocabulary stay. If one of them has the name of a special with another id, the
    special's token is its name followed by its id.

    Raises:
      UserError: the name of a code or a voice is taken, or the library reads other ids.
    """
    data, taken = json.loads(model), token_ids(model)
    used = set(taken.values())
    names = {id_: f"<|{name}|>" for name, id_ in vocab.special_ids.items() if name in SPECIALS}
    names = {id_: f"{name[:-2]}_{id_}|>" if name in taken else name for id_, name in names.items()}
    names |= {vocab.speech_offset + code: CODE.format(code) for code in range(vocab.codebook_size)}
    names |= {vocab.voice_offset + i: f"<|voice_{name}|>" for i, name in enumerate(vocab.voices)}
    new = {names.get(id_, UNUSED.format(id_)): id_ for id_ in range(vocab.size) if id_ not in used}
    for name in new.keys() & taken.keys():
        raise UserError(f"text vocabulary: has a token {name} of its own, with id {taken[name]}")
    # sorted, because the library changes the ids of a list in another order
    added = data.get("added_tokens", []) + _added(new)
    data["added_tokens"] = sorted(added, key=lambda token: token["id"])
    extended = json.dumps(data, ensure_ascii=False).encode()
    read = _open(extended, "text vocabulary").get_vocab(with_added_tokens=True)
    for name, id_ in {**taken, **new}.items():
        if read.get(name) != id_:
            raise UserError(
                f"text vocabulary: token {shown(name)} has id {id_}, and is read as "
                f"{read.get(name)}; give a tokenizer.json whose ids have no gaps and are not shared"
            )
    return extended


def token_of(model: bytes, id_: int) -> str:
    """Returns the token with this id in a tokenizer.json."""
    return {found: token for token, found in token_ids(model).items()}[id_]


def _added(tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": id_, "content": content, **flags, "special": True}
        for content, id_ in sorted(tokens.items(), key=lambda item: item[1])
    ]


def _last_merge(piece: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Returns the two pieces whose merge gives a piece, if lower ranks are merged first."""
    parts = [bytes([byte]) for byte in piece]
    limit = ranks[piece]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, limit) for a, b in zip(parts[:-1], parts[1:], strict=True)]
        lowest = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[lowest] >= limit:
            raise UserError(f"tiktoken ranks: {piece!r} cannot be made by merging lower ranks")
        parts[lowest : lowest + 2] = [parts[lowest] + parts[lowest + 1]]
    left, right = parts
    return left, right


def _byte_letters() -> dict[int, str]:
    """Returns the printable letter of each byte in a byte-level tokenizer.json (as in GPT-2)."""
    plain: Sequence[Iterable[int]] = (range(33, 127), range(161, 173), range(174, 256))
    letters = {byte: chr(byte) for part in plain for byte in part}
    others = [byte for byte in range(256) if byte not in letters]
    return {**letters, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
