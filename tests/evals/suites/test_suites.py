"""Figures of models that are known: perfect ones, mute ones, and ones that hear nothing."""

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.audio.espeak import make_voices
from speechlm_jax.audio.mel import MelConfig, wav_to_mel
from speechlm_jax.chat.dialogue import Chat, Reply
from speechlm_jax.codes import CODES
from speechlm_jax.data.formats import Writer
from speechlm_jax.evals.items import figures_from_items
from speechlm_jax.evals.suites import (
    chat,
    interleaved,
    language_model,
    speech_decoder,
    text_to_token,
    tokenizer,
)
from speechlm_jax.evals.suites.clips import EvaluationClips
from speechlm_jax.nn.inference import Inference
from speechlm_jax.quickstart import corpora
from speechlm_jax.quickstart.sizes import CorpusConfig
from speechlm_jax.speech_decoder.synthesis import SpeechDecoder
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.text import TextTokenizer
from speechlm_jax.text_to_token.synthesize import TextToToken
from speechlm_jax.vocab import Vocab
from speechlm_jax.world.tables import load_tables
from speechlm_jax.world.world import World

CONFIG = CorpusConfig(train_clips=4, eval_clips=10, question_voices=1, dialogue_voices=1, stories=4)
WORLD = World.make(load_tables(), 0)
WORDS = [*WORLD.tables.words, *WORLD.tables.unseen_words]
ENTRIES = 2 * len(WORDS)


def codes_of(text):
    """Two codes a word: a tokenizer that mishears nothing."""
    return [2 * WORDS.index(word) + i for word in text.split() for i in (0, 1)]


def read(clips):
    return [" ".join(WORDS[int(code) // 2] for code in clip[::2]) for clip in clips]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    clips = corpora.clips(WORLD, make_voices(0), CONFIG, seed=0)
    rows = [{**clip.row, "codes": codes_of(clip.text)} for clip in clips]
    artifacts.write_jsonl(folder / CODES, (r for r in rows if r["split"] == corpora.EVALUATION))
    return EvaluationClips(folder, WORLD)


def values(items):
    return {name: figure.value for name, figure in figures_from_items(items).items()}


class Codebook(Transcriber):
    def __init__(self):
        self.codebook = np.random.default_rng(0).normal(size=(ENTRIES, 8)).astype(np.float32)


def test_spans_of_documents_are_read_back():
    right = {"text": "paris today", "codes": codes_of("paris today")}
    wrong = {"text": "anna", "codes": codes_of("cairo")}
    documents = [{"segments": [{"text": "my friend"}, right]}, {"segments": [wrong, wrong]}]
    assert values(interleaved.span_items(documents, read, most=2)) == {
        "interleaved/wer": pytest.approx(1 / 3)
    }


def test_a_perfect_tokenizer_and_its_shuffled_control(spoken):
    found = values(tokenizer.tokenizer_items(spoken, read, Codebook(), seed=0))
    for name in ("wer", "wer_sentences", "wer_questions", "entity_wer", "abx_dtw", "abx_edit"):
        assert found[f"tokenizer/{name}"] == 0, name
    assert found["tokenizer/wer_shuffled"] > 0.8
    used = {code for clip in tokenizer.held_out_codes(spoken) for code in clip}
    assert found["tokenizer/codebook_usage"] == pytest.approx(len(used) / ENTRIES)


def test_a_deaf_tokenizer_has_no_word_right(spoken):
    found = values(
        tokenizer.tokenizer_items(spoken, lambda clips: [""] * len(clips), Codebook(), seed=0)
    )
    assert found["tokenizer/wer"] == found["tokenizer/wer_questions"] == 1


class Speaker(TextToToken):
    """Says every text but those that it is told to leave out, and remembers who spoke."""

    def __init__(self, mute=()):
        self.mute, self.asked = mute, []

    def text_to_codes(self, requests):
        self.asked += requests
        said = ["" if r.text in self.mute else r.text for r in requests]
        return [np.array(codes_of(text), np.int32) for text in said]


def test_what_cannot_be_said_counts_as_deleted():
    names = WORLD.tables.people[:4]
    texts = {"text_to_token/wer": [f"{names[0]} {names[1]}", names[2], names[3]]}
    speaker = Speaker(mute=(names[2],))
    items = text_to_token.text_to_token_items(texts, speaker, read, voices=("low", "high"), seed=5)
    assert values(items) == {"text_to_token/wer": 1 / 4}
    assert [request.voice for request in speaker.asked] == ["low", "high", "low"]
    assert [request.seed for request in speaker.asked] == [5, 6, 7]


class Assistant(Chat):
    """Answers the question that it hears."""

    def __init__(self, answers):
        self.answers = answers

    def reply(self, questions, *, mode, seed=0):
        said = [self.answers[read([codes])[0]] for codes in questions]
        return [Reply(text, np.array(codes_of(text), np.int32)) for text in said]


def test_a_chat_that_listens_falls_with_shuffled_codes(spoken):
    questions = spoken.questions()
    assert len(questions) == len(WORLD.facts)
    answers = {q.text: f"{q.lead} {q.answer}" for q in questions}
    found = values(chat.chat_items(questions, Assistant(answers), read, seed=0))
    for mode in ("speech_only", "text_guided"):
        assert found[f"chat/{mode}"] == 1
        assert found[f"chat/{mode}_shuffled"] < 0.4
    deaf = dict.fromkeys(answers, f"{questions[0].lead} {questions[0].answer}")
    found = values(chat.chat_items(questions, Assistant(deaf), read, seed=0))
    assert found["chat/speech_only"] == found["chat/speech_only_shuffled"] < 0.1


class Knower(Inference):
    """Knows every fact; hears questions and stories, or takes all for silence if it is `deaf`."""

    def __init__(self, writer, *, deaf=False):
        self.writer, self.deaf = writer, deaf
        self.answers = {q.text: q.answer for q in WORLD.questions(WORLD.facts)}
        self.true = {
            wording.format(person=fact.person, value=fact.value)
            for fact in WORLD.facts
            for wording in WORLD.tables.wordings(fact.attribute)
        }

    def words(self, ids):
        vocab, text = self.writer.vocab, self.writer.tokenizer
        spoken = np.array([i for i in ids if i >= vocab.speech_offset], np.int32)
        heard = [] if self.deaf else read([vocab.ids_to_codes(spoken)])[0].split()
        return [*heard, *text.decode([i for i in ids if i < vocab.text_size]).split()]

    def generate(self, requests, *, sampling=None):
        replies = []
        for request in requests:
            asked = " ".join(self.words(request.prompt)).removesuffix(" it is")
            answer = self.answers.get(asked, "paris")
            to_speech = 0 not in request.allowed
            said = codes_of(f"it is {answer}") if to_speech else answer
            replies.append(self.writer.continuation(said))
        return replies

    def score(self, requests):
        return [float(self.is_true(r)) for r in requests]

    def is_true(self, request):
        told, said = (
            " ".join(self.words(request.prompt)),
            " ".join(self.words(request.continuation)),
        )
        answer = said.split()[-1] if said else ""
        return self.answers.get(told.removesuffix(" it is")) == answer or said in self.true


@pytest.fixture(scope="module")
def writer():
    text = TextTokenizer.train([" ".join(WORDS)], kind="word")
    return Writer(Vocab(text.size, ENTRIES, 12.5, text.fingerprint, "tokenizer"), text)


def test_a_model_that_knows_and_hears_is_right_in_every_mode(spoken, writer):
    found = values(language_model.lm_items("arm", spoken, Knower(writer), writer, read, seed=0))
    for mode in ("s2t", "s2t_choice", "t2t", "t2t_choice", "s2s", "s2s_choice"):
        for suffix in ("", "_new_wording", "_text_only"):
            stem, _, choice = mode.partition("_")
            name = f"qa/{stem}{suffix}{'_choice' if choice else ''}/arm"
            assert found[name] == 1, name
    for direction in ("s2s", "s2t", "t2s", "t2t"):
        assert found[f"storycloze/{direction}/arm"] == 1
    assert found["qa/s2t_shuffled/arm"] < 0.4 and found["qa/s2s_shuffled/arm"] < 0.4


def test_a_deaf_model_knows_what_is_written_alone(spoken, writer):
    found = values(
        language_model.lm_items("arm", spoken, Knower(writer, deaf=True), writer, read, seed=0)
    )
    assert found["qa/t2t/arm"] == found["storycloze/t2t/arm"] == 1
    assert found["qa/s2t/arm"] < 0.3 and found["qa/s2s/arm"] < 0.3
    assert found["storycloze/s2s/arm"] == 0.5, "a tie"


def test_audio_that_comes_back_unchanged_has_the_errors_of_the_reader_alone(spoken):
    rows = spoken.of_kind("eval_string")[:2]
    wavs = [0.3 * np.sin(np.arange(4_000 + 800 * i) / (4 + i)).astype(np.float32) for i in range(2)]
    mel = MelConfig()

    class Unchanged(SpeechDecoder):
        def __init__(self):
            pass

        def codes_to_mel(self, codes, **_):
            return [wav_to_mel(wav, mel) for wav in wavs]

    def heard(mels):
        assert [len(one) for one in mels] == [len(wav) // mel.hop_length for wav in wavs]
        return [rows[0]["text"], ""]

    items = speech_decoder.decoder_items(rows, wavs, Unchanged(), heard, mel=mel, seed=0)
    found = values(items)
    lost, all_words = (len(rows[1]["text"].split()), sum(len(r["text"].split()) for r in rows))
    assert found["speech_decoder/wer"] == pytest.approx(lost / all_words)
    assert abs(found["speech_decoder/level_difference_db"]) < 1.0
    assert found["speech_decoder/clipped_ratio"] == 0


def test_questions_carry_the_spoken_answers_of_their_voice(spoken):
    for question in spoken.questions():
        assert read([question.codes]) == [question.text]
        said = read(question.spoken_answers)
        assert said == [f"{question.lead} {value}" for value in question.values]
