"""Tiny stages that `speechlm train` alone has trained: no step of a whole run made them."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import soundfile

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.audio.features import write_features
from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.cli import main as cli
from speechlm_jax.codes import read_codes
from speechlm_jax.data import mixture, rows
from speechlm_jax.data.clips import BucketConfig
from speechlm_jax.data.formats import Writer, example_to_document
from speechlm_jax.data.packing import Packer
from speechlm_jax.errors import EXIT_OK
from speechlm_jax.experiment.configs import (
    ClipsData,
    LanguageModelExperiment,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
)
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
from speechlm_jax.text import TextTokenizer, make_vocab
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig

TEXTS = ("it is the cat", "the city of anna", "it is london", "ben has the cat")
VOICES = ("Ann", "Ben")
MEL = MelConfig(num_mels=40, floor="fixed")  # not Whisper's
SMALL = TransformerConfig(1, 16, 2, 2, 8, 32)
TOKENIZER = SpeechTokenizerConfig(
    text_size=0,
    encoder=EncoderConfig(
        num_mels=40, layers=1, embed=16, heads=2, mlp=32, latent_dim=8, rope_theta=10_000.0
    ),
    quantizer=QuantizerConfig(codebook_size=16, codebook_dim=8, start_step=0),
    post_vq_layers=1,
    decoder_layers=1,
)
FLOW = FlowConfig(0, 0, num_mels=40, embed=16, heads=2, mlp=32, encoder_layers=1,
                  estimator_layers=1)  # fmt: skip


def command(*words: object) -> None:
    """Runs `speechlm WORDS`, which must end well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main([*map(str, words), "--quiet"]) == EXIT_OK


def train(folder: Path, name: str, experiment: object) -> Path:
    """`speechlm train` of an experiment; returns the training's folder."""
    config = folder / f"{name}.json"
    artifacts.write_json(config, configs.to_json(experiment))
    command("train", config, "--workdir", folder / name)
    return folder / name


def training(steps: int = 2) -> TrainConfig:
    optimizer = OptimizerConfig(peak=1e-2, warmup_steps=0, schedule="constant")
    return TrainConfig(total_steps=steps, optimizer=optimizer, save_every_steps=steps)


def write_clips(folder: Path) -> Path:
    """Recordings of noise that rises and falls, each with its text and speaker."""
    folder.mkdir()
    table = []
    for number, text in enumerate(TEXTS):
        wav = np.random.default_rng(number).normal(0, 0.1, 12_000 + 1_000 * number)
        wav *= np.sin(np.linspace(0.1, 9, len(wav))) ** 2
        soundfile.write(folder / f"{number}.wav", wav, 16_000)
        row = {"id": str(number), "audio": f"{number}.wav", "text": text}
        table.append({**row, "speaker": VOICES[number % 2]})
    artifacts.write_jsonl(folder / "manifest.jsonl", table)
    return folder


def write_rows(folder: Path, vocab, text, examples) -> Path:
    """A prepared mixture of one task, whose held-out rows are those that are trained on."""
    splits = {}
    for split in ("train", "validation"):
        packer, place = Packer(64, open_rows=4), folder / "task" / split
        packed = [row for example in examples for row in packer.add(example_to_document(example))]
        path = place / "rows-00000-of-00001.arrayrecord"
        counts = rows.write_rows(path, [*packed, *packer.finish()], vocab=vocab, length=64)
        rows.write_row_manifest(
            place, [rows.RowFile(path.name, counts.rows, path.stat().st_size)], task="task",
            split=split, vocab=vocab, length=64, counts=dataclasses.asdict(counts), inputs={},
            config={}, seed=0,
        )  # fmt: skip
        splits[split] = f"task/{split}"
    made = mixture.PreparedMixture(
        "task", 64, vocab.fingerprint, (mixture.PreparedTask("task", 1.0, splits),)
    )
    return mixture.write_mixture(folder, made, text)


def make_stages(folder: Path) -> Path:
    """Trainings in a folder: tok, tts, lm and decoder; codes; the clips that all are made from."""
    clips = write_clips(folder / "clips")
    write_features(clips, folder / "features", MEL, workers=1)
    text = TextTokenizer.train([" ".join(TEXTS)], kind="word")
    text.save(folder / "words.model")
    data = ClipsData(
        str(folder / "features"), str(folder / "words.model"),
        buckets=BucketConfig(batch_size=4, edges=(128,)),
    )  # fmt: skip
    tok = train(folder, "tok", SpeechTokenizerExperiment(data, TOKENIZER, training()))
    command("tokenize", clips, "--run", tok, "--out", folder / "codes")
    codes = open_bundle(folder / "tok").codes
    spoken = list(read_codes(folder / "codes"))
    for name, kind, vocab, steps in (
        ("tts", "text_to_token", make_vocab(text, codes, voices=VOICES), 60),
        ("lm", "lm", make_vocab(text, codes), 2),
    ):
        writer = Writer(vocab, text)
        examples = [
            writer.voiced_tts(row["codes"], row["text"], row["speaker"])
            if kind == "text_to_token"
            else writer.asr(row["codes"], row["text"])
            for row in spoken
        ]
        rows_data = RowsData(str(write_rows(folder / f"{name}_rows", vocab, text, examples)),
                             batch_size=4)  # fmt: skip
        model = LanguageModelConfig(0, SMALL)
        experiment = LanguageModelExperiment(rows_data, model, training(steps), kind=kind)
        train(folder, name, experiment)
    data = dataclasses.replace(data, codes=str(folder / "codes"))
    train(folder, "decoder", SpeechDecoderExperiment(data, FLOW, training()))
    return folder
