"""Folders of Whisper, or of a speech tokenizer made from it, <-> runs."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from speechlm_jax import artifacts
from speechlm_jax.convert import tokenizers
from speechlm_jax.convert.folder_files import has, inside, read_object
from speechlm_jax.convert.safetensors_folder import CONFIG, Folder, write_folder
from speechlm_jax.convert.whisper import find_prefix, model_digest, plan_model, read_model
from speechlm_jax.convert.whisper_config import (
    config_from_json,
    config_to_json,
    generation_to_json,
)
from speechlm_jax.experiment.runs import load_speech_tokenizer, save_speech_tokenizer
from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.vocab_files import vocab_to_files

RELEASED = "released"  # folder in a converted run with the files that were beside the weights
GENERATION = "generation_config.json"
COMPANIONS = (
    GENERATION, "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "normalizer.json", "vocab.json", "merges.txt", tokenizers.FILE,
)  # fmt: skip

_log = logging.getLogger("speechlm.convert")


def convert(source: Path, out: Path, *, dtype: str, is_released: bool) -> dict[str, Any]:
    """Turns a released folder into a run, or a run into such a folder.

    Raises:
      UserError: tensors or fields do not fit, or `out` is not empty.
    """
    return _into_run(source, out) if is_released else _into_folder(source, out, dtype=dtype)


def read_released_config(folder: Folder) -> tuple[SpeechTokenizerConfig, dict[str, int]]:
    """Returns our config of a released folder, and the id of each token of its vocabulary."""
    path = folder.path
    tokens = tokenizers.token_ids(tokenizers.read_tokenizer(path)) if _has_text(path) else {}
    decoder = find_prefix(folder.shapes).replace("encoder.", "decoder.") + "embed_tokens.weight"
    config = config_from_json(
        folder.config,
        str(path / CONFIG),
        generation=read_object(path, GENERATION) if has(path, GENERATION) else None,
        tokens=tokens,
        has_decoder=decoder in folder.shapes,
    )
    return config, tokens


def _has_text(path: Path) -> bool:
    return has(path, tokenizers.FILE)


def _into_run(source: Path, out: Path) -> dict[str, Any]:
    folder = Folder(source)
    config, tokens = read_released_config(folder)
    params, variables = read_model(folder, config, mesh=make_mesh(MeshConfig()))
    if not tokens and config.text is not None:
        _log.warning("%s: has no %s, so its texts are not read", source, tokenizers.FILE)
    identity = model_digest(folder, config)
    text = tokenizers.read_tokenizer(source) if tokens else None
    with artifacts.new_folder(out) as made:
        save_speech_tokenizer(made, config, params, variables, weights=identity)
        for name, data in vocab_to_files(None, text).items():
            artifacts.write_bytes(made / name, data)
        (made / RELEASED).mkdir()
        for name in COMPANIONS:
            if has(source, name):
                shutil.copyfile(inside(source, name), made / RELEASED / name)
    return {
        "run": str(out),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "codes": config.quantizer.codebook_size if config.quantizer else 0,
        "frame_rate_hz": config.frame_rate_hz,
        "weights": identity,
    }


def _into_folder(source: Path, out: Path, *, dtype: str) -> dict[str, Any]:
    found, config = load_speech_tokenizer(source)
    described = config_to_json(config, dtype=dtype)
    planned = plan_model(config, found.params, found.variables)
    released = source / RELEASED
    with artifacts.new_folder(out) as made:
        writing = write_folder(made, planned, described, dtype=dtype)
        written = list(tqdm(writing, desc="export", unit="file"))
        beside = [name for name in COMPANIONS if has(released, name)]
        for name in beside:
            shutil.copyfile(inside(released, name), made / name)
        if config.text is not None and GENERATION not in beside:
            artifacts.write_json(made / GENERATION, generation_to_json(config.text))
            beside.append(GENERATION)
    return {"folder": str(out), "files": [*written, *beside], "step": found.meta.step}
