"""A run on a user's own data -> scored items, audio samples and the report."""

from typing import Any

from speechlm_jax.codes import read_codes
from speechlm_jax.evals.codebook import code_counts, perplexity_figure, usage_items
from speechlm_jax.evals.controls import exchange
from speechlm_jax.evals.items import Item, figures_from_items
from speechlm_jax.evals.suites.clips import readings
from speechlm_jax.evals.suites.held_out import loss_items
from speechlm_jax.evals.suites.text_to_token import text_to_token_items
from speechlm_jax.evals.wer import wer_items
from speechlm_jax.experiment.runs import held_out_losses
from speechlm_jax.quickstart import evaluate, samples, summary
from speechlm_jax.quickstart.own_data import OwnData, bad_recordings
from speechlm_jax.quickstart.run import TRAIN
from speechlm_jax.quickstart.samples import Sample, reconstructions, speak
from speechlm_jax.quickstart.sizes import MICRO
from speechlm_jax.report.inputs import ReportInputs
from speechlm_jax.report.write import write_report
from speechlm_jax.text_to_token.synthesize import SpeechRequest

SPOKEN_WORDS = 12  # words spoken of a text: about the length of an interleaved span
PANELS = tuple(panel for panel in summary.TRAININGS if panel[2] not in ("lm_baseline", "chat"))
MODELS = ("speech_decoder", "text_to_token")


def score(q: OwnData) -> None:
    """Scores all models of the run and writes the items."""
    groups = {
        "tokenizer": (q.folders.tokenizer, lambda: _tokenizer_items(q)),
        "text_to_token": (q.folders.text_to_token, lambda: _text_to_token_items(q)),
        "speech_decoder": (
            q.folders.speech_decoder, lambda: evaluate.decoder_items(q, q.held_out)
        ),
        "lm_interleaved": (
            q.folders.lm_interleaved,
            lambda: loss_items(held_out_losses(q.folders.lm_interleaved)),
        ),
    }  # fmt: skip
    for name, (model, make) in groups.items():
        evaluate.score_group(q, name, model, make, codes="held_out")


def write_samples(q: OwnData) -> None:
    """Writes reconstructions of held-out clips, and speech made from held-out texts."""
    samples.keep_samples(q, MODELS, lambda: [*reconstructions(q, q.held_out), *_spoken_text(q)])


def write(q: OwnData, *, command: str) -> None:
    """Writes report.json and report.html into the run's folder; the report has no claims."""
    items = summary.all_items(q)
    codes = [row["codes"] for row in q.held_out]
    counts = code_counts(codes, codebook_size=q.models.codes.codebook_size)
    figures = figures_from_items(items, seed=q.seed)
    figures["tokenizer/codebook_perplexity"] = perplexity_figure(
        codes, codebook_size=len(counts), seed=q.seed
    )
    write_report(
        q.folders.run,
        ReportInputs(
            title="Quickstart on your own data",
            note=_note(q),
            figures=figures,
            provenance=summary.provenance(q, {"text": q.models.text.fingerprint}, command=command),
            warning=summary.NOTHING_LEARNT if q.config.lm == MICRO.lm else "",
            trainings=summary.trainings(q, PANELS),
            codebook_counts=counts,
            bad_recordings=tuple(bad_recordings(q)),
            examples=summary.examples(q, items),
        ),
    )


def _note(q: OwnData) -> str:
    rows, counts = q.features.rows, q.features.manifest.counts
    held_out = [row for row in rows if row["split"] != TRAIN]
    unheard = {row["speaker"] for row in held_out} - set(q.voices)
    whom = f"of {len(unheard)} speakers not heard in training" if unheard else "of known speakers"
    return (
        f"{counts['clips']} recordings, {counts['seconds'] / 60:.1f} minutes, "
        f"{len({row['speaker'] for row in rows})} speakers; held out: {len(held_out)} {whom}. "
        f"{counts['bad']} set aside. Seed {q.seed}."
    )


def _tokenizer_items(q: OwnData) -> list[Item]:
    """Returns WER items and codebook usage on held-out clips.

    The WER is that of held-out clips, of as many training clips, and of held-out clips with
    exchanged codes.
    """
    items = []
    known = list(read_codes(q.codes("train")))[: len(q.held_out)]
    for figure, rows in (("tokenizer/wer", q.held_out), ("tokenizer/wer_train", known)):
        items += wer_items(figure, readings(rows, q.models.read([row["codes"] for row in rows])))
    codes, texts = [row["codes"] for row in q.held_out], [row["text"] for row in q.held_out]
    # `exchange` needs another clip with another text for each clip.
    if 2 * max(texts.count(text) for text in texts) <= len(texts):
        heard = q.models.read(exchange(codes, texts, seed=q.seed))
        items += wer_items("tokenizer/wer_shuffled", readings(q.held_out, heard))
    counts = code_counts(codes, codebook_size=q.models.codes.codebook_size)
    return [*items, *usage_items("tokenizer/codebook_usage", counts)]


def _text_to_token_items(q: OwnData) -> list[Item]:
    return text_to_token_items(
        {"text_to_token/wer": [_short(row) for row in q.held_out]},
        q.text_to_token, q.models.read, voices=q.voices, seed=q.seed,
    )  # fmt: skip


def _spoken_text(q: OwnData) -> list[Sample]:
    rows = q.held_out[: samples.NUM_RECONSTRUCTIONS]
    requests = [
        SpeechRequest(_short(row), q.voices[i % len(q.voices)], seed=q.seed + i)
        for i, row in enumerate(rows)
    ]
    spoken = q.text_to_token.text_to_codes(requests)
    return [
        speak(q, codes, "Text to speech", f"{number} in the voice {request.voice}", request.text)
        for number, (request, codes) in enumerate(zip(requests, spoken, strict=True), 1)
        if len(codes)
    ]


def _short(row: dict[str, Any]) -> str:
    """Returns the first `SPOKEN_WORDS` words of a clip's text."""
    return " ".join(row["text"].split()[:SPOKEN_WORDS])
