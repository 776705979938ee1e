"""Hugging Face model folders <-> runs."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_codes, open_vocab
from speechlm_jax.convert import language_model, tokenizers, weights
from speechlm_jax.convert.companions import Companions, read_companions
from speechlm_jax.convert.extension import Extended
from speechlm_jax.convert.families import family_of
from speechlm_jax.convert.folder_files import read_object
from speechlm_jax.convert.joint_vocab import joint_vocab
from speechlm_jax.convert.safetensors_folder import CONFIG, Folder
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.configs import LanguageModelExperiment
from speechlm_jax.experiment.runs import as_trained, load_language_model, save_language_model
from speechlm_jax.nn.language_model import functional
from speechlm_jax.sharding import MeshConfig, make_mesh, param_shardings
from speechlm_jax.text import TextTokenizer
from speechlm_jax.train import checkpoints
from speechlm_jax.verbs import whisper
from speechlm_jax.verbs.paths import check_source, is_whisper
from speechlm_jax.vocab import Vocab
from speechlm_jax.vocab_files import vocab_to_files

RELEASED = "released"  # folder in a converted run with the files that were beside the weights

_log = logging.getLogger("speechlm.convert")


def convert(
    source: str | Path,
    *,
    run: str | Path,
    out: str | Path,
    dtype: str = "bfloat16",
    length: int = 8192,
    seed: int = 0,
) -> dict[str, Any]:
    """Turns a Hugging Face model folder into a run, or a run into such a folder.

    Into a run: the vocabulary is extended by the specials and the codes of the speech tokenizer of
    `run` (see `convert.extension` for the initial values of new rows), unless the model has codes
    already (GLM-4-Voice). The weights are read onto all devices of this machine. `out` can then be
    `init_from` of a training, and `--run` of `prepare`.

    Into a folder: `transformers` opens it without changes, and its tokenizer has every id. If `run`
    is a converted model, its chat template and generation config are written too.

    A Whisper, and a speech tokenizer made from it, is converted both ways without `run`.

    Inputs are checked before weights are read, and `out` is created only when it is complete.

    Args:
      source: a Hugging Face model folder or a run.
      run: a bundle: its speech tokenizer makes the codes (into a run), or its vocabulary is that of
        `source` (into a folder). Into a run, it may also be a folder of codes made elsewhere
        (`data.declare`).
      dtype: dtype of exported weights.
      length: longest context of an exported model, in ids.
      seed: seed of new rows.

    Raises:
      UserError: `source` is neither, tensors do not fit, or `out` is not empty.
    """
    source, out = Path(source), Path(out)
    check_source(source, out)
    if is_whisper(source):
        return whisper.convert(source, out, dtype=dtype, is_released=_is_released(source))
    if _is_released(source):
        return _into_run(source, out, run, seed=seed)
    return _into_folder(source, out, run, dtype=dtype, length=length)


def _is_released(source: Path) -> bool:
    """Returns whether a folder holds a Hugging Face model; a run's config.json has a "class"."""
    if (source / CONFIG).is_file():
        return "class" not in read_object(source, CONFIG)
    return source.is_dir() and any(source.glob("*.safetensors"))


def _into_run(source: Path, out: Path, run: str | Path, *, seed: int) -> dict[str, Any]:
    folder = Folder(source)
    family, config = language_model.read_config(folder)
    text, codes = TextTokenizer(tokenizers.read_tokenizer(source)), open_codes(run)
    tokens = tokenizers.token_ids(text.model)
    companions = read_companions(source, tokens, size=config.vocab_size)
    shapes = functional(config).shapes
    stored = weights.digest(folder, family.tensors(config), shapes)
    vocab = joint_vocab(text, codes, size=config.vocab_size, eos=companions.eos)
    config = dataclasses.replace(config, vocab_size=vocab.size)
    longer = Extended(folder, family.tensors(config), vocab.size, seed=seed)
    model = functional(config)
    shardings = param_shardings(model.shapes, model.axes, mesh=make_mesh(MeshConfig()))
    params = language_model.read_params(
        longer, family, config, where=str(source), shardings=shardings
    )
    with artifacts.new_folder(out) as made:
        save_language_model(made, config, params, vocab, weights=f"{stored}-{seed}")
        for name, data in vocab_to_files(vocab, text.model).items():
            artifacts.write_bytes(made / name, data)
        companions.write(made / RELEASED)
    return {
        "run": str(out),
        "family": family.model_type,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.shapes)),
        "ids": {"text": vocab.text_size, "all": vocab.size, "codes_from": vocab.speech_offset},
        "vocabulary": vocab.fingerprint,
    }


def _into_folder(
    source: Path, out: Path, run: str | Path, *, dtype: str, length: int
) -> dict[str, Any]:
    meta = checkpoints.newest_meta(source)
    family_of(as_trained(source, meta, LanguageModelExperiment).model)
    vocab, text = open_vocab(run)
    theirs = meta.identity.get("vocabulary")
    if theirs != vocab.fingerprint:
        raise UserError(
            f"{source}: was trained with vocabulary {theirs}, {run} has {vocab.fingerprint}; give "
            "--run the folder that its rows were prepared with"
        )
    beside = _tokenizer_files(Path(run) / RELEASED, text, vocab, length=length)
    found, experiment = load_language_model(source)
    ends = {"bos_token_id": vocab["bos"], "eos_token_id": vocab["eos"]}
    with artifacts.new_folder(out) as made:
        writing = language_model.write_params(
            made, experiment.model, found.params, length=length, dtype=dtype, extra=ends
        )
        written = list(tqdm(writing, desc="export", unit="file"))
        if beside is None:
            _log.warning("%s: a SentencePiece vocabulary is not written beside the model", run)
        else:
            extended, companions = beside
            artifacts.write_bytes(made / tokenizers.FILE, extended)
            written += [tokenizers.FILE, *companions.write(made)]
    return {"folder": str(out), "files": written, "step": found.meta.step}


def _tokenizer_files(
    released: Path, text: TextTokenizer, vocab: Vocab, *, length: int
) -> tuple[bytes, Companions] | None:
    """Returns the extended tokenizer.json and its companions; None for SentencePiece."""
    if not text.is_json:
        return None
    extended = tokenizers.extend_tokenizer(text.model, vocab)
    companions = Companions()
    if released.is_dir():
        tokens = tokenizers.token_ids(text.model)
        companions = read_companions(released, tokens, size=vocab.text_size)
    eos = (tokenizers.token_of(extended, vocab["eos"]), vocab["eos"])
    return extended, companions.of_export(length=length, eos=eos)
