"""Audio samples as WAV files: reconstructions, spoken answers and a dialogue."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.arrays import Integer, ndarray
from speechlm_jax.audio.wav import read_wav, write_wav
from speechlm_jax.chat.dialogue import Chat
from speechlm_jax.evals.spoken_qa import Question, answer_in_text
from speechlm_jax.evals.suites.language_model import MAX_ANSWER_CODES
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.quickstart import corpora
from speechlm_jax.quickstart.run import Chain, Quickstart
from speechlm_jax.report.inputs import DUEL

KIND = "audio"
SAMPLES = "samples.jsonl"
NUM_RECONSTRUCTIONS, NUM_ANSWERS = 3, 3
MODELS = ("speech_decoder", "lm_interleaved", "lm_baseline", "chat")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A WAV file with its group in the report, its title, and the text that it says, if known.

    `file` is "" if a model said nothing and the report is to show that.
    """

    group: str
    title: str
    text: str
    file: str


def write_samples(q: Quickstart) -> None:
    """Writes the samples of a run on a world.

    They are one question to both arms, reconstructions, spoken answers and a dialogue.
    """
    told = q.spoken.of_kind("eval_sentence")

    def make() -> list[Sample]:
        return [*_duel(q), *reconstructions(q, told), *_answers(q), *_dialogue(q)]

    keep_samples(q, MODELS, make)


def keep_samples(q: Chain, models: Sequence[str], make: Callable[[], list[Sample]]) -> None:
    """Makes the WAV files and writes their list, unless those of the same models are finished."""
    out = q.folders.audio
    inputs = {name: q.fingerprint(getattr(q.folders, name)) for name in models}
    if artifacts.is_current(out, KIND, inputs=inputs, config={}, seed=q.seed):
        return
    made = make()
    artifacts.write_jsonl(out / SAMPLES, (dataclasses.asdict(sample) for sample in made))
    files = [SAMPLES, *(sample.file for sample in made if sample.file)]
    artifacts.write_manifest(out, KIND, inputs=inputs, config={}, seed=q.seed, files=files)


def read_samples(folder: Path) -> list[Sample]:
    """Reads the samples of a finished folder."""
    return [Sample(**row) for row in artifacts.read_jsonl(folder / SAMPLES)]


def reconstructions(q: Chain, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Writes the first few clips (rows of a codes folder) and their reconstructions from codes."""
    samples = []
    for number, row in enumerate(rows[:NUM_RECONSTRUCTIONS]):
        original = f"original-{number}.wav"
        write_wav(q.folders.audio / original, read_wav(q.audio_of(row)))
        samples.append(Sample("Reconstructions", f"original {number + 1}", row["text"], original))
        samples.append(
            speak(
                q, row["codes"], "Reconstructions", f"through the codes {number + 1}", row["text"]
            )
        )
    return samples


def _duel(q: Quickstart) -> list[Sample]:
    """Writes a spoken question, and each arm's spoken reply with its written answer as the title.

    Decoding is greedy.
    """
    question = _interleaved_questions(q)[0]
    title = f"asked by {question.voice} (right: {question.answer})"
    samples = [_asked(q, question, DUEL, title, file="question.wav")]
    for arm in q.arms:
        inference = q.models.language_model(getattr(q.folders, f"lm_{arm}"))
        (written,) = answer_in_text(
            "", [question], asked_in="speech", generate=inference.generate,
            writer=q.models.writer,
        )  # fmt: skip
        title = f"{arm}: writes “{written.hypothesis}”, says"
        (codes,) = _spoken_replies(q, inference, [question])
        samples += _spoken(q, codes, DUEL, title) or [Sample(DUEL, title, "", "")]
    return samples


def _answers(q: Quickstart) -> list[Sample]:
    """Writes spoken answers of the interleaved arm (greedy) to questions of held-out voices."""
    asked = _interleaved_questions(q)[1 : 1 + NUM_ANSWERS]  # `_duel` uses the first
    replies = _spoken_replies(q, q.models.language_model(q.folders.lm_interleaved), asked)
    samples = []
    for question, codes in zip(asked, replies, strict=True):
        title = f"{question.text}? (right: {question.answer})"
        samples += _spoken(q, codes, "Spoken answers", title)
    return samples


def _interleaved_questions(q: Quickstart) -> list[Question]:
    """Returns the first question about each fact of kind `interleaved`."""
    asked = (x for x in q.spoken.questions() if x.wording == "interleaved")
    return list({x.fact: x for x in reversed([*asked])}.values())[::-1]


def _spoken_replies(
    q: Quickstart, inference: Inference, asked: Sequence[Question]
) -> list[Integer[ndarray, " _frames"]]:
    """Returns the codes of the replies to spoken questions."""
    replies = inference.generate(
        [
            GenerateRequest(
                prompt=q.models.writer.prompt(question.codes, then="speech"),
                allowed=q.models.vocab.allowed("speech", specials=("end_of_speech",)),
                stops=(q.models.vocab["end_of_speech"],),
                max_new=MAX_ANSWER_CODES,
            )
            for question in asked
        ]
    )
    return [q.models.vocab.ids_to_codes(np.array(reply, np.int32)) for reply in replies]


def _dialogue(q: Quickstart) -> list[Sample]:
    """Writes one dialogue in both modes, about a person whom the fine-tuning did not name."""
    told = corpora.told_people(q.world)
    question = _first_heard(q.spoken.questions(), told)
    chat = Chat(q.models.part_model("chat"), q.models.writer)
    samples = [_asked(q, question, "Dialogue", "question", file="dialogue-question.wav")]
    for mode in ("speech_only", "text_guided"):
        reply = chat.reply([np.asarray(question.codes)], mode=mode, seed=q.seed)[0]
        text = f", text: {reply.text}" if reply.text else ""
        samples += _spoken(q, reply.codes, "Dialogue", f"{mode.replace('_', ' ')} reply{text}")
    return samples


def _first_heard(questions: Sequence[Question], told: Sequence[str]) -> Question:
    new = [x for x in questions if x.fact.split("/")[0] not in told]
    return next((x for x in new if x.wording == "interleaved"), new[0])


def _asked(q: Quickstart, question: Question, group: str, title: str, *, file: str) -> Sample:
    """Writes the clip of a question."""
    rows = q.spoken.of_kind("question")
    row = next(r for r in rows if r["fact"] == question.fact and r["speaker"] == question.voice)
    write_wav(q.folders.audio / file, read_wav(q.audio_of(row)))
    return Sample(group, title, row["text"], file)


def _spoken(
    q: Quickstart, codes: Integer[ndarray, " frames"], group: str, title: str
) -> list[Sample]:
    """Writes codes as audio, with the text that the tokenizer's ASR reads; [] without codes."""
    if not len(codes):
        return []
    return [speak(q, codes, group, title, q.models.read([codes])[0])]


def speak(
    q: Chain,
    codes: Sequence[int] | Integer[ndarray, " frames"],
    group: str,
    title: str,
    text: str,
) -> Sample:
    """Writes codes as a WAV file."""
    models = q.models
    clip = np.asarray(codes, np.int32)
    wav = models.speech_decoder.codes_to_wav([clip], mel=models.mel, seed=q.seed)[0]
    slug = "".join(c if c.isalnum() else "-" for c in f"{group} {title}".lower())[:60]
    file = f"{slug}.wav"
    write_wav(q.folders.audio / file, wav)
    return Sample(group, title, text, file)
