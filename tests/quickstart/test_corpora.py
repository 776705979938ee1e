"""Who says what: no evaluation clip can be known from training, no dialogue tells on the others."""

from itertools import product

import pytest

from speechlm_jax.audio.espeak import make_voices
from speechlm_jax.quickstart import corpora
from speechlm_jax.quickstart.sizes import CorpusConfig
from speechlm_jax.world.tables import load_tables
from speechlm_jax.world.world import World

SEED = 3
CONFIG = CorpusConfig(
    train_clips=1500, eval_clips=60, question_voices=2, dialogue_voices=2, stories=20
)
LEARNT = (corpora.TRAIN, corpora.VALIDATION)


@pytest.fixture(scope="module")
def world():
    return World.make(load_tables(), SEED)


@pytest.fixture(scope="module")
def voices():
    return make_voices(SEED)


@pytest.fixture(scope="module")
def clips(world, voices):
    return corpora.clips(world, voices, CONFIG, seed=SEED)


def of_split(clips, *splits):
    return [clip for clip in clips if clip.extra["split"] in splits]


def of_kind(clips, kind):
    return [clip for clip in clips if clip.extra["kind"] == kind]


def test_a_seed_gives_the_same_clips_with_ids_of_their_own(world, voices, clips):
    assert corpora.clips(world, voices, CONFIG, seed=SEED) == clips
    assert len({clip.id for clip in clips}) == len(clips)
    assert corpora.clips(world, voices, CONFIG, seed=SEED + 1) != clips


def test_held_out_voices_only_evaluate_and_share_no_variant_with_training(clips):
    evaluating = of_split(clips, corpora.EVALUATION)
    training = of_split(clips, *LEARNT, corpora.DIALOGUE)
    assert len(evaluating) + len(training) == len(clips)
    variants = [{clip.voice.variant for clip in part} for part in (evaluating, training)]
    assert variants[0] and not variants[0] & variants[1]


def test_evaluated_strings_sentences_and_words_are_unseen(world, clips):
    learnt = {clip.text for clip in of_split(clips, *LEARNT)}
    words = {word for text in learnt for word in text.split()}
    for kind in ("eval_string", "eval_sentence"):
        texts = [clip.text for clip in of_kind(clips, kind)]
        assert len(texts) == CONFIG.eval_clips and not learnt.intersection(texts)
    unseen = of_kind(clips, "unseen_word")
    assert {clip.text for clip in unseen} == set(world.tables.unseen_words)
    assert not words.intersection(world.tables.unseen_words)
    assert len({(clip.text, clip.voice) for clip in unseen}) == len(unseen)


def test_text_to_token_texts_are_unseen_too(world, clips):
    known = {clip.text for clip in of_split(clips, *LEARNT)}
    for kind in ("string", "sentence"):
        texts = corpora.unseen_texts(world, kind, 50, known=known, seed=SEED)
        assert len(texts) == 50 and not known.intersection(texts)


def test_no_sentence_that_is_learnt_asks_for_a_new_wording_fact(world, clips):
    questions = {q.text for q in world.questions(world.facts_of("new_wording"))}
    assert questions
    for clip in of_split(clips, *LEARNT):
        assert not any(question in clip.text for question in questions)
    others = {q.text for q in world.questions(world.facts_of("interleaved", "text_only"))}
    learnt = [clip.text for clip in of_split(clips, *LEARNT)]
    assert any(question in text for question, text in product(others, learnt))


def test_dialogues_name_only_told_people_in_training_voices(world, voices, clips):
    told = corpora.told_people(world)
    assert len(told) == len(world.tables.people) // 2
    asked = of_kind(clips, "dialogue_question")
    assert {clip.extra["fact"].split("/")[0] for clip in asked} == set(told)
    assert {clip.voice for clip in asked} <= set(voices.train)
    untold = set(world.tables.people) - set(told)
    for clip in of_split(clips, corpora.DIALOGUE):
        assert not untold.intersection(clip.text.split())
    replies = of_kind(clips, "reply")
    assert {clip.voice for clip in replies} == {voices.train[corpora.ASSISTANT]}
    values = {value for values in world.tables.attributes.values() for value in values}
    assert {clip.text.split()[-1] for clip in replies} == values


def test_every_fact_is_asked_by_the_same_number_of_voices(world, clips):
    asked = of_kind(clips, "question")
    assert len(asked) == CONFIG.question_voices * len(world.facts)
    texts = {q.fact.id: q.text for q in world.questions(world.facts)}
    assert all(clip.text == texts[clip.extra["fact"]] for clip in asked)
    answers = {(clip.text, clip.voice) for clip in of_kind(clips, "answer")}
    for clip in asked:
        fact = next(fact for fact in world.facts if fact.id == clip.extra["fact"])
        assert (f"{world.tables.answer_lead} {fact.value}", clip.voice) in answers


def test_documents_tell_only_facts_of_their_kind(world):
    spoken = [
        row["text"]
        for row in corpora.documents(
            world, ("interleaved", "new_wording"), 60, words=100, seed=SEED, name="d"
        )
    ]
    hidden = {q.text for q in world.questions(world.facts_of("new_wording"))}
    for text in spoken:
        assert len(text.split()) >= 100
        assert not any(question in text for question in hidden)
    for fact in world.facts_of("text_only"):
        told = [w.format(person=fact.person, value=fact.value)
                for w in world.tables.wordings(fact.attribute)]  # fmt: skip
        assert not any(sentence in text for sentence, text in product(told, spoken))
