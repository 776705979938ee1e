"""Word accuracy of the speech tokenizer on real digits, each of five speakers held out in turn.

    python benchmarks/digits.py                     # all five, two at a time
    python benchmarks/digits.py --speaker theo train.total_steps=200

Recordings: the Free Spoken Digit Dataset as a folder with manifest.jsonl, `speech_digits_fsdd`
inside SPEECHLM_DATA (default: ../shared/data beside the checkout). Trains the config
configs/speech_tokenizer_digits.py; after an interruption, the same command continues. Prints one
JSON object for each speaker, then one with the mean and the worst. Exit code 1 if the mean over all
speakers is below 80%.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax import shipped
from speechlm_jax.audio.features import write_features
from speechlm_jax.audio.recordings import Features
from speechlm_jax.errors import EXIT_STOPPED, EXIT_USAGE, Stopped, UserError
from speechlm_jax.evals.codebook import code_counts
from speechlm_jax.evals.items import Item, figure_from_items, write_items
from speechlm_jax.evals.wer import Reading, wer_items
from speechlm_jax.experiment.configs import SpeechTokenizerExperiment
from speechlm_jax.experiment.processes import Run, train_all
from speechlm_jax.experiment.runs import load_reader
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.text import TextTokenizer
from speechlm_jax.train import checkpoints

CONFIG = "configs/speech_tokenizer_digits.py"
CORPUS = "speech_digits_fsdd"
BAR = 0.80  # mean word accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the corpus, trains the models that are not trained yet, and prints their scores."""
    args = _parse(arguments)
    config = shipped.import_file(CONFIG)
    features, text = prepare(_corpus(), args.out, config.MEL)
    everyone = sorted({row["speaker"] for row in features.rows})
    chosen = args.speaker or everyone
    if unknown := set(chosen).difference(everyone):
        raise UserError(f"--speaker {unknown.pop()}: the corpus has {', '.join(everyone)}")
    runs = [
        fold(configs.override(config.config(), args.overrides), args.out, features, text, speaker)
        for speaker in chosen
    ]
    results = []
    for first in range(0, len(runs), args.jobs):
        part = slice(first, first + args.jobs)
        train_all(runs[part], threads=max(1, (os.cpu_count() or 1) // args.jobs))
        for run, speaker in zip(runs[part], chosen[part], strict=True):
            results.append(score(run, features, text, speaker, items=args.out / "items"))
            print(json.dumps(results[-1]), flush=True)
    accuracy = {result["speaker"]: result["word_accuracy"] for result in results}
    worst = min(accuracy, key=accuracy.__getitem__)
    mean = round(float(np.mean(list(accuracy.values()))), 4)
    print(json.dumps({"mean": mean, "worst": accuracy[worst], "worst_speaker": worst}))
    return int(set(chosen) == set(everyone) and mean < BAR)


def prepare(clips: Path, out: Path, mel: Any) -> tuple[Features, TextTokenizer]:
    """Returns the features and the word vocabulary of the corpus, and writes both to `out`."""
    features = write_features(clips, out / "features", mel)
    text = TextTokenizer.train([row["text"] for row in features.rows], kind="word")
    text.save(out / "text.model")
    return features, text


def fold(
    experiment: SpeechTokenizerExperiment,
    out: Path,
    features: Features,
    text: TextTokenizer,
    speaker: str,
) -> Run:
    """Returns the training without `speaker`."""
    data = dataclasses.replace(
        experiment.data,
        features=str(out / "features"),
        text_vocab=str(out / "text.model"),
        not_speakers=(speaker,),
    )
    inputs = {"features": features.fingerprint, "text": text.fingerprint}
    return Run(speaker, dataclasses.replace(experiment, data=data), out / speaker, inputs)


def score(
    run: Run, features: Features, text: TextTokenizer, speaker: str, *, items: Path
) -> dict[str, Any]:
    """Returns the word accuracy (1 - WER) of text read from codes of the held-out speaker's clips.

    `seen_speakers` is the word accuracy on clips of the training speakers that were not trained on.
    """
    reader, _ = load_reader(run.workdir)
    meta = checkpoints.load_params(run.workdir).meta
    rows = range(len(features))
    held_out = [i for i in rows if features.rows[i]["speaker"] == speaker]
    seen = [
        i
        for i in rows
        if features.rows[i]["speaker"] != speaker and features.rows[i].get("split") == "test"
    ]
    codes, found = _read(reader, features, text, held_out, figure=f"digits/{speaker}")
    write_items(items, found)
    figure = figure_from_items(found)
    counts = code_counts(codes, codebook_size=len(reader.codebook))
    result = {
        "speaker": speaker,
        "word_accuracy": 1 - figure.value,
        "low": 1 - figure.high,
        "high": 1 - figure.low,
    }
    if seen:
        others = figure_from_items(_read(reader, features, text, seen, figure="digits/seen")[1])
        result["seen_speakers"] = 1 - others.value
    return {
        **{name: value if name == "speaker" else round(value, 4) for name, value in result.items()},
        "clips": len(found),
        "codes_used": int(np.sum(np.asarray(counts) > 0)),
        "steps": meta.step,
        **{name: round(seconds, 1) for name, seconds in meta.timing.items()},
    }


def _read(
    reader: Transcriber, features: Features, text: TextTokenizer, clips: list[int], *, figure: str
) -> tuple[list[np.ndarray], list[Item]]:
    codes = reader.mels_to_codes([features.mel(i) for i in clips])
    said = [text.decode(ids) for ids in reader.codes_to_ids(codes)]
    rows = [features.rows[i] for i in clips]
    readings = [
        Reading(row["text"], words, voice=row["speaker"])
        for row, words in zip(rows, said, strict=True)
    ]
    return codes, wer_items(figure, readings)


def _corpus() -> Path:
    data = os.environ.get("SPEECHLM_DATA", Path(__file__).resolve().parents[2] / "shared/data")
    folder = Path(data) / CORPUS
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set SPEECHLM_DATA to the folder of {CORPUS}")
    return folder


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/digits"), help="default: %(default)s"
    )
    parser.add_argument(
        "--speaker",
        metavar="NAME",
        action="append",
        help="hold this one out (default: each in turn)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once (default: 2)")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes of the config")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
