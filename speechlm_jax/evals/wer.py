"""References and hypotheses -> word errors, over all words or over a set of words."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import jiwer

from speechlm_jax.data.text_norm import normalize, to_words
from speechlm_jax.evals.items import Item


@dataclasses.dataclass(frozen=True)
class Reading:
    """Words that were said and words that were read back; the fields are those of `Item`."""

    reference: str
    hypothesis: str
    voice: str = ""
    fact: str = ""
    wording: str = ""


@dataclasses.dataclass(frozen=True)
class Errors:
    """Number of errors, and of reference words that could have been wrong."""

    errors: int
    words: int


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Counts substitutions, deletions and insertions, and reference words, after normalisation."""
    output = _align(reference, hypothesis)
    return Errors(
        errors=output.substitutions + output.deletions + output.insertions,
        words=len(to_words(reference)),
    )


def entity_errors(reference: str, hypothesis: str, entities: Collection[str]) -> Errors:
    """Counts errors on the words of `entities` (already normalised) alone.

    In the least-error alignment over all words, an entity of the reference that is substituted or
    deleted is an error, and so is an entity that is inserted. Another word that is misheard as an
    entity is not: it is an error on that word.
    """
    output = _align(reference, hypothesis)
    wanted, heard = output.references[0], output.hypotheses[0]
    errors = 0
    for chunk in output.alignments[0]:
        if chunk.type in ("substitute", "delete"):
            errors += _count(wanted[chunk.ref_start_idx : chunk.ref_end_idx], entities)
        elif chunk.type == "insert":
            errors += _count(heard[chunk.hyp_start_idx : chunk.hyp_end_idx], entities)
    return Errors(errors=errors, words=_count(wanted, entities))


def wer_items(figure: str, readings: Iterable[Reading]) -> list[Item]:
    """Returns one item per reading: word errors over reference words."""
    return [
        _item(figure, reading, word_errors(reading.reference, reading.hypothesis))
        for reading in readings
    ]


def entity_wer_items(
    figure: str, readings: Iterable[Reading], entities: Collection[str]
) -> list[Item]:
    """Returns one item per reading that holds or inserts an entity; see `entity_errors`."""
    words = {normalize(entity) for entity in entities}
    scored = (
        (reading, entity_errors(reading.reference, reading.hypothesis, words))
        for reading in readings
    )
    return [
        _item(figure, reading, found) for reading, found in scored if found.words or found.errors
    ]


def _align(reference: str, hypothesis: str) -> jiwer.WordOutput:
    return jiwer.process_words([normalize(reference)], [normalize(hypothesis)])


def _count(words: Sequence[str], entities: Collection[str]) -> int:
    return sum(word in entities for word in words)


def _item(figure: str, reading: Reading, found: Errors) -> Item:
    return Item(
        figure=figure,
        **dataclasses.asdict(reading),
        numerator=float(found.errors),
        denominator=float(found.words),
    )
