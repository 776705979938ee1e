"""Texts of the world: every clip to be spoken, and the written documents."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np

from speechlm_jax.audio.corpus import CorpusClip
from speechlm_jax.audio.espeak import Voice, Voices
from speechlm_jax.quickstart.sizes import CorpusConfig
from speechlm_jax.world import texts
from speechlm_jax.world.world import Fact, Kind, World

TRAIN, VALIDATION, DIALOGUE, EVALUATION = "train", "validation", "dialogue", "evaluation"
VALIDATION_EVERY = 64  # every 64th string or sentence is held out for the validation loss


def clips(world: World, voices: Voices, config: CorpusConfig, *, seed: int) -> list[CorpusClip]:
    """Returns every clip to be spoken.

    Clips of kind `string` and `sentence` (splits "train" and "validation"), `passage` (split
    "train"), and `dialogue_question` and `reply` (split "dialogue") have training voices. All
    others are in split "evaluation" and have held-out voices.
    """
    rng = np.random.default_rng((seed, 0xC11B5))
    corpus = list(_corpus(world, voices.train, config, rng))
    known = {text for text, _, _ in corpus}
    made = [
        *corpus,
        *_unseen(world, voices.held_out, config, rng, known=known, seed=seed),
        *_questions(world, voices, config, rng),
        *_stories(world, voices.held_out, config, rng),
    ]
    return [
        CorpusClip(f"{number:05d}-{extra['kind']}", text, voice, extra)
        for number, (text, voice, extra) in enumerate(made)
    ]


def told_people(world: World) -> tuple[str, ...]:
    """Returns the half of the people whom the chat's dialogues name."""
    return world.tables.people[::2]


def documents(
    world: World, kinds: Sequence[Kind], number: int, *, words: int, seed: int, name: str
) -> Iterator[dict[str, Any]]:
    """Yields `number` documents about facts of these kinds, as rows {"id", "text"}."""
    rng = np.random.default_rng((seed, 0xD0C5, len(kinds)))
    stream = texts.documents(world, rng, world.facts_of(*kinds), num_words=words)
    for i, document in enumerate(islice(stream, number)):
        yield {"id": f"{name}-{i:05d}", "text": document.text}


def unseen_texts(
    world: World, kind: Literal["string", "sentence"], number: int, *, known: set[str], seed: int
) -> list[str]:
    """Returns `number` random strings or sentences that are not in `known`."""
    rng = np.random.default_rng((seed, 0x7E575))
    make = MAKERS[kind]
    found: list[str] = []
    while len(found) < number:
        text = make(world, rng)
        if text not in known:
            found.append(text)
    return found


Spoken = tuple[str, Voice, dict[str, Any]]
ASSISTANT = 0  # the training voice that speaks the chat's replies
MAKERS = {"string": texts.random_string, "sentence": texts.random_sentence}


def _corpus(
    world: World, voices: Sequence[Voice], config: CorpusConfig, rng: np.random.Generator
) -> Iterator[Spoken]:
    for number in range(config.train_clips):
        split = VALIDATION if number % VALIDATION_EVERY == VALIDATION_EVERY - 1 else TRAIN
        kind = "string" if rng.random() < config.string_ratio else "sentence"
        yield MAKERS[kind](world, rng), _draw(voices, rng), {"kind": kind, "split": split}
    # The spans of documents are longer than strings and sentences, and start and stop anywhere.
    for _ in range(config.passages):
        number = max(1, int(rng.poisson(config.passage_words)))
        extra = {"kind": "passage", "split": TRAIN}
        yield texts.random_passage(world, rng, number), _draw(voices, rng), extra


def _unseen(
    world: World,
    voices: Sequence[Voice],
    config: CorpusConfig,
    rng: np.random.Generator,
    *,
    known: set[str],
    seed: int,
) -> Iterator[Spoken]:
    for kind in ("string", "sentence"):
        for text in unseen_texts(world, kind, config.eval_clips, known=known, seed=seed):
            yield text, _draw(voices, rng), {"kind": f"eval_{kind}", "split": EVALUATION}
    for word in world.tables.unseen_words:
        for voice in voices:
            yield word, voice, {"kind": "unseen_word", "split": EVALUATION}


def _questions(
    world: World, voices: Voices, config: CorpusConfig, rng: np.random.Generator
) -> Iterator[Spoken]:
    tables = world.tables
    asking = [
        voices.held_out[i] for i in rng.permutation(len(voices.held_out))[: config.question_voices]
    ]
    for question in world.questions(world.facts):
        for voice in asking:
            yield (
                question.text,
                voice,
                {"kind": "question", "split": EVALUATION, "fact": question.fact.id},
            )
    for values in tables.attributes.values():
        for value in values:
            for voice in asking:
                yield (
                    f"{tables.answer_lead} {value}",
                    voice,
                    {"kind": "answer", "split": EVALUATION},
                )
            extra = {"kind": "reply", "split": DIALOGUE}
            yield f"{tables.answer_lead} {value}", voices.train[ASSISTANT], extra
    for question in world.questions(world.facts_of(people=told_people(world))):
        for i in rng.permutation(len(voices.train))[: config.dialogue_voices]:
            extra = {"kind": "dialogue_question", "split": DIALOGUE, "fact": question.fact.id}
            yield question.text, voices.train[i], extra


def _stories(
    world: World, voices: Sequence[Voice], config: CorpusConfig, rng: np.random.Generator
) -> Iterator[Spoken]:
    facts: tuple[Fact, ...] = world.facts_of("interleaved", "new_wording")
    for number, story in enumerate(islice(texts.stories(world, rng, facts), config.stories)):
        voice = _draw(voices, rng)
        parts = {"beginning": story.context, "right": story.right.text, "wrong": story.wrong}
        for part, text in parts.items():
            extra = {
                "kind": "story",
                "split": EVALUATION,
                "story": f"story-{number:03d}",
                "part": part,
            }
            yield text, voice, extra


def _draw(voices: Sequence[Voice], rng: np.random.Generator) -> Voice:
    return voices[int(rng.integers(len(voices)))]
