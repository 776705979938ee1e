"""A run's folder with untrained models: what they say is noise, but every verb works on them."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.bundle.contents import RUN_VOICED
from speechlm_jax.bundle.make import upgrade_bundle
from speechlm_jax.data import mixture, rows
from speechlm_jax.data.formats import Example, Writer, example_to_document
from speechlm_jax.data.packing import Packer
from speechlm_jax.experiment.configs import (
    ClipsData,
    LanguageModelExperiment,
    RowsData,
    SpeechDecoderExperiment,
    SpeechTokenizerExperiment,
)
from speechlm_jax.experiment.runs import trained_codes
from speechlm_jax.nn.language_model import LanguageModelConfig
from speechlm_jax.nn.language_model import functional as language_model
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.speech_decoder.flow import FlowConfig
from speechlm_jax.speech_decoder.stage import functional as flow
from speechlm_jax.speech_tokenizer.encoder import EncoderConfig
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.quantizer import QuantizerConfig
from speechlm_jax.speech_tokenizer.stage import functional as speech_tokenizer
from speechlm_jax.text import TextTokenizer, make_vocab
from speechlm_jax.train.checkpoint_folder import Meta
from speechlm_jax.train.checkpoints import CheckpointWriter
from speechlm_jax.train.loop import TrainConfig
from speechlm_jax.train.optimizer import OptimizerConfig
from speechlm_jax.train.state import TrainState
from speechlm_jax.vocab import Vocab

WORDS = "anna ben city cat has is it lives london of the what"
VOICES = ("Ann", "Ben")
TRAIN = TrainConfig(total_steps=1, optimizer=OptimizerConfig(peak=1e-3, warmup_steps=0))
SMALL = TransformerConfig(1, 16, 2, 2, 8, 32)
TOKENIZER = SpeechTokenizerConfig(
    text_size=0,
    encoder=EncoderConfig(layers=1, embed=16, heads=2, mlp=32, latent_dim=8, rope_theta=10_000.0),
    quantizer=QuantizerConfig(codebook_size=16, codebook_dim=8),
    post_vq_layers=1,
    decoder_layers=1,
)
FLOW = FlowConfig(
    16, 2, embed=16, heads=2, mlp=32, encoder_layers=1, estimator_layers=1, mel_mean=-0.3,
    mel_std=0.1,
)  # fmt: skip


def make_run(folder: Path, *, words: str = WORDS, seed: int = 0) -> Path:
    """Writes the run; another `seed` is another speech tokenizer, and so another vocabulary."""
    text = TextTokenizer.train([words], kind="word")
    text.save(folder / "text.model")
    config = dataclasses.replace(TOKENIZER, text_size=text.size)
    clips = ClipsData("features", str(folder / "text.model"))
    experiment = SpeechTokenizerExperiment(clips, config, TRAIN)
    its = {"text": text.fingerprint}
    save(folder / "tokenizer", speech_tokenizer(config), experiment, its, seed=seed)
    codes = trained_codes(folder / "tokenizer")
    vocab = make_vocab(text, codes)
    voiced = make_vocab(text, codes, voices=VOICES)
    artifacts.write_json(folder / RUN_VOICED, voiced.to_json())
    mixture_file = write_validation_rows(folder / "prepared", vocab, text)
    save_language_model(folder / "lm_interleaved", vocab, mixture_file)
    shutil.copytree(folder / "lm_interleaved", folder / "chat")
    # Of sixty draws, this one ends most of what it says.
    save_language_model(
        folder / "text_to_token", voiced, mixture_file, kind="text_to_token", seed=46
    )
    artifacts.write_manifest(folder / "text_to_token", "training", inputs={}, config={})
    save(folder / "speech_decoder", flow(FLOW), SpeechDecoderExperiment(clips, FLOW, TRAIN),
         {"tokenizer": codes.tokenizer})  # fmt: skip
    upgrade_bundle(folder)
    return folder


def save_language_model(
    folder: Path, vocab: Vocab, mixture_file: Path, *, kind: str = "lm", seed: int = 0
) -> None:
    """Writes an untrained language model."""
    config = LanguageModelConfig(vocab.size, SMALL)
    experiment = LanguageModelExperiment(RowsData(str(mixture_file)), config, TRAIN, kind=kind)
    its = {"vocabulary": vocab.fingerprint, "tokenizer": vocab.tokenizer_fingerprint}
    save(folder, language_model(config), experiment, its, seed=seed)


def save(folder: Path, model, experiment, identity: dict[str, str], *, seed: int = 0) -> None:
    """Writes a checkpoint of step 1."""
    params, variables = jax.jit(model.init)(jax.random.key(seed))
    plain = configs.to_json(experiment)
    writer = CheckpointWriter(folder)
    meta = Meta("stage", 1, 1, identity, plain, configs.fingerprint([plain, seed]), {})
    writer.save(TrainState(np.int32(1), params, variables, {}), meta)
    writer.close()


def write_validation_rows(folder: Path, vocab: Vocab, text: TextTokenizer) -> Path:
    """A prepared mixture of one task that has held-out rows alone."""
    writer, packer = Writer(vocab, text), Packer(32, open_rows=4)
    documents: list[Example] = [writer.text("the city of anna is london")] * 9
    packed = [row for example in documents for row in packer.add(example_to_document(example))]
    split = folder / "some_text/validation"
    path = split / "rows-00000-of-00001.arrayrecord"
    counts = rows.write_rows(path, [*packed, *packer.finish()], vocab=vocab, length=32)
    rows.write_row_manifest(
        split, [rows.RowFile(path.name, counts.rows, path.stat().st_size)], task="some_text",
        split="validation", vocab=vocab, length=32, counts=dataclasses.asdict(counts), inputs={},
        config={}, seed=0,
    )  # fmt: skip
    task = mixture.PreparedTask("some_text", 1.0, {"validation": "some_text/validation"})
    made = mixture.PreparedMixture("mine", 32, vocab.fingerprint, (task,))
    return mixture.write_mixture(folder, made)
