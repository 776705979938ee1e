"""Audio to listen to: reconstructions, spoken answers, and a dialogue, as WAV files."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax.arrays import Integer, ndarray
from speechlm_jax.audio.griffin_lim import mel_to_wav
from speechlm_jax.audio.mel import MelConfig
from speechlm_jax.audio.wav import read_wav, write_wav
from speechlm_jax.chat.dialogue import Chat
from speechlm_jax.evals.formats import Formats
from speechlm_jax.evals.spoken_qa import Question
from speechlm_jax.nn.inference import GenerateRequest
from speechlm_jax.quickstart import corpora
from speechlm_jax.quickstart.run import Chain, Quickstart
from speechlm_jax.quickstart.scoring import MAX_ANSWER_CODES

KIND = "audio"
SAMPLES = "samples.jsonl"
NUM_RECONSTRUCTIONS, NUM_ANSWERS = 3, 3
MODELS = ("speech_decoder", "lm_interleaved", "chat")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A WAV file: its group in the report, its title, and what it says as far as that is known."""

    group: str
    title: str
    text: str
    file: str


def write_samples(q: Quickstart) -> None:
    """Reconstructions, spoken answers and a dialogue of a world's run."""
    told = q.spoken.of_kind("eval_sentence")
    keep_samples(q, MODELS, lambda: [*reconstructions(q, told), *_answers(q), *_dialogue(q)])


def keep_samples(q: Chain, models: Sequence[str], make: Callable[[], list[Sample]]) -> None:
    """Makes the WAV files and writes their list; finished ones of the same models are kept."""
    out = q.folders.audio
    inputs = {name: q.fingerprint(getattr(q.folders, name)) for name in models}
    if artifacts.is_current(out, KIND, inputs=inputs, config={}, seed=q.seed):
        return
    made = make()
    artifacts.write_jsonl(out / SAMPLES, (dataclasses.asdict(sample) for sample in made))
    files = [SAMPLES, *(sample.file for sample in made)]
    artifacts.write_manifest(out, KIND, inputs=inputs, config={}, seed=q.seed, files=files)


def read_samples(folder: Path) -> list[Sample]:
    """The samples of a finished folder."""
    return [Sample(**row) for row in artifacts.read_jsonl(folder / SAMPLES)]


def reconstructions(q: Chain, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """The first few clips (rows of a codes folder), and the same through codes and back."""
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


def _answers(q: Quickstart) -> list[Sample]:
    """Spoken answers of the interleaved arm, greedily, to spoken questions of held-out voices."""
    formats = Formats(q.vocab, q.text)
    asked = [x for x in q.spoken.questions() if x.wording == "interleaved"][:NUM_ANSWERS]
    inference = q.language_model(q.folders.lm_interleaved)
    replies = inference.generate(
        [
            GenerateRequest(
                prompt=formats.prompt(question.codes, then="speech"),
                allowed=q.vocab.allowed("speech", specials=("end_of_speech",)),
                stops=(q.vocab["end_of_speech"],),
                max_new=MAX_ANSWER_CODES,
            )
            for question in asked
        ]
    )
    samples = []
    for question, reply in zip(asked, replies, strict=True):
        codes = q.vocab.ids_to_codes(np.array(reply, np.int32))
        title = f"{question.text}? (right: {question.answer})"
        samples += _spoken(q, codes, "Spoken answers", title)
    return samples


def _dialogue(q: Quickstart) -> list[Sample]:
    """One dialogue in both modes, about somebody whom the fine-tuning did not name."""
    told = corpora.told_people(q.world)
    question = _first_heard(q.spoken.questions(), told)
    chat = Chat(q.language_model(q.folders.chat), q.writer)
    samples = [_asked(q, question)]
    for mode in ("speech_only", "text_guided"):
        reply = chat.reply([np.asarray(question.codes)], mode=mode, seed=q.seed)[0]
        text = f", text: {reply.text}" if reply.text else ""
        samples += _spoken(q, reply.codes, "Dialogue", f"{mode.replace('_', ' ')} reply{text}")
    return samples


def _first_heard(questions: Sequence[Question], told: Sequence[str]) -> Question:
    new = [x for x in questions if x.fact.split("/")[0] not in told]
    return next((x for x in new if x.wording == "interleaved"), new[0])


def _asked(q: Quickstart, question: Question) -> Sample:
    rows = q.spoken.of_kind("question")
    row = next(r for r in rows if r["fact"] == question.fact and r["speaker"] == question.voice)
    write_wav(q.folders.audio / "question.wav", read_wav(q.audio_of(row)))
    return Sample("Dialogue", "question", row["text"], "question.wav")


def _spoken(
    q: Quickstart, codes: Integer[ndarray, " frames"], group: str, title: str
) -> list[Sample]:
    """What the codes say, as audio; nothing if the model said nothing."""
    if not len(codes):
        return []
    return [speak(q, codes, group, title, q.read([codes])[0])]


def speak(
    q: Chain,
    codes: Sequence[int] | Integer[ndarray, " frames"],
    group: str,
    title: str,
    text: str,
) -> Sample:
    """Writes codes as audio."""
    mel = q.speech_decoder.codes_to_mel([np.asarray(codes, np.int32)], seed=q.seed)[0]
    slug = "".join(c if c.isalnum() else "-" for c in f"{group} {title}".lower())[:60]
    write_wav(q.folders.audio / f"{slug}.wav", mel_to_wav(mel, MelConfig(), seed=q.seed))
    return Sample(group, title, text, f"{slug}.wav")
