"""Hugging Face model folders <-> runs."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax.convert import tokenizers, weights
from speechlm_jax.convert.extension import Extended
from speechlm_jax.convert.safetensors_folder import CONFIG, Folder
from speechlm_jax.convert.speech_ids import spoken_vocab
from speechlm_jax.errors import UserError
from speechlm_jax.experiment.runs import load_language_model, save_language_model
from speechlm_jax.nn.inference import functional
from speechlm_jax.sharding import MeshConfig, make_mesh, param_shardings
from speechlm_jax.text import TextTokenizer
from speechlm_jax.verbs.opening import BASE_TEXT, BASE_VOCAB, open_codes, open_vocab
from speechlm_jax.vocab import Vocab

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

    Into a run: the vocabulary is extended by the specials and the codes of `run`'s speech
    tokenizer (see `convert.extension` for what new rows start from), unless the model has codes
    already (GLM-4-Voice), and weights are read onto all devices of this machine. `out` then serves
    as `init_from`, and as `--run` of `prepare`.

    Into a folder: `transformers` opens it unchanged, its tokenizer has every id.

    Args:
      source: either.
      run: whose speech tokenizer (into a run), or whose vocabulary (into a folder), it is; into a
        run, it may also be a folder of codes made elsewhere (`data.declare`).
      dtype, length: of an exported model: its weights, its longest context.
      seed: of new rows.

    Raises:
      UserError: `source` is neither, tensors do not fit, or `out` holds something.
    """
    source, out = Path(source), Path(out)
    if (source / CONFIG).is_file() and "model_type" in artifacts.read_json(source / CONFIG):
        return _into_run(source, out, run, seed=seed)
    return _into_folder(source, out, run, dtype=dtype, length=length)


def _into_run(source: Path, out: Path, run: str | Path, *, seed: int) -> dict[str, Any]:
    folder = Folder(source)
    family, config = weights.read_config(folder)
    text, codes = TextTokenizer(tokenizers.read_tokenizer(source)), open_codes(run)
    vocab = spoken_vocab(text, codes, size=config.vocab_size) or Vocab(
        text_size=max(config.vocab_size, text.size),
        codebook_size=codes["codebook_size"],
        frame_rate_hz=codes["frame_rate_hz"],
        text_fingerprint=text.fingerprint,
        tokenizer_fingerprint=codes["tokenizer"],
    )
    config = dataclasses.replace(config, vocab_size=vocab.size)
    longer = Extended(folder, family.tensors(config), vocab.size, seed=seed)
    model = functional(config)
    shardings = param_shardings(model.shapes, model.axes, mesh=make_mesh(MeshConfig()))
    params = weights.read_params(longer, family, config, where=str(source), shardings=shardings)
    save_language_model(out, config, params, vocab)
    artifacts.write_bytes(out / BASE_TEXT, text.model)
    artifacts.write_json(out / BASE_VOCAB, vocab.to_json())
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
    vocab, text = open_vocab(run)
    found, experiment = load_language_model(source)
    theirs = found.meta.identity.get("vocabulary")
    if theirs != vocab.fingerprint:
        raise UserError(
            f"{source}: was trained with vocabulary {theirs}, {run} has {vocab.fingerprint}; give "
            "--run the folder that its rows were prepared with"
        )
    ends = {"bos_token_id": vocab["bos"], "eos_token_id": vocab["eos"]}
    writing = weights.write_params(
        out, experiment.model, found.params, length=length, dtype=dtype, extra=ends
    )
    written = list(tqdm(writing, desc="export", unit="file"))
    if text.is_json:
        extended = tokenizers.extend_tokenizer(text.model, vocab)
        eos = tokenizers.token_of(extended, vocab["eos"])
        tokenizers.write_tokenizer(out, extended, length=length, eos=eos)
        written += [tokenizers.FILE, tokenizers.CONFIG]
    else:
        _log.warning("%s: a SentencePiece vocabulary is not written beside the model", run)
    return {"folder": str(out), "files": written, "step": found.meta.step}
