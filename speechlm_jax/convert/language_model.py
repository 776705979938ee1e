"""Language models of Hugging Face folders <-> ours: configs and parameters."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from speechlm_jax.arrays import PyTree
from speechlm_jax.convert.families import EMBEDDING, HEAD, Family, family_of
from speechlm_jax.convert.model_config import config_from_json, config_to_json
from speechlm_jax.convert.safetensors_folder import CONFIG, SHARD_BYTES, Folder, write_folder
from speechlm_jax.convert.weights import Source, check_tensors, plan_tensors, read_tensors
from speechlm_jax.errors import UserError
from speechlm_jax.nn.adapters import merge_adapters
from speechlm_jax.nn.language_model import LanguageModelConfig, functional


def read_config(folder: Folder) -> tuple[Family, LanguageModelConfig]:
    """Returns the family and our config of the model in a folder.

    Raises:
      UserError: config.json is of no model that we have, or tensors do not fit it; the message
        lists them.
    """
    where = str(folder.path / CONFIG)
    family, config = config_from_json(folder.config, where)
    if config.transformer.num_layers > len(folder.shapes):
        raise UserError(
            f"{where}: says {config.transformer.num_layers} layers; the folder has "
            f"{len(folder.shapes)} tensors in all"
        )
    tensors, shapes = family.tensors(config), functional(config).shapes
    check_tensors(folder.shapes, tensors, shapes, str(folder.path))
    if config.tied:
        _check_tied(folder, where)
    return family, config


def read_params(
    source: Source,
    family: Family,
    config: LanguageModelConfig,
    *,
    where: str,
    shardings: PyTree | None = None,
    dtype: Any = jnp.float32,
) -> PyTree:
    """Reads the parameters of a model: see `weights.read_tensors`."""
    tensors, shapes = family.tensors(config), functional(config).shapes
    return read_tensors(source, tensors, shapes, where=where, shardings=shardings, dtype=dtype)


def write_params(
    path: str | Path,
    config: LanguageModelConfig,
    params: PyTree,
    *,
    length: int,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Writes a model as a folder that `transformers` opens; yields each file's name.

    Adapters are merged into the weights.

    Args:
      length: longest context that the model is trained for, in ids.
      extra: further fields of config.json, such as `eos_token_id`.
    """
    config, params = _unscaled(*merge_adapters(config, params))
    tensors, shapes = family_of(config).tensors(config), functional(config).shapes
    described = {**config_to_json(config, dtype=dtype, length=length), **(extra or {})}
    planned = plan_tensors(tensors, shapes, params)
    yield from write_folder(path, planned, described, dtype=dtype, shard_bytes=shard_bytes)


def _unscaled(config: LanguageModelConfig, params: PyTree) -> tuple[LanguageModelConfig, PyTree]:
    """Returns the same model without scaled embeddings, which no family supports."""
    if not config.scale_embeddings:
        return config, params
    table = params["embedding"]
    head = {"kernel": table.T} if config.tied else params["head"]
    scaled = {**params, "embedding": table * config.transformer.embed**0.5, "head": head}
    return dataclasses.replace(config, tied=False, scale_embeddings=False), scaled


def _check_tied(folder: Folder, where: str) -> None:
    """Raises UserError if the folder has an output layer that differs from the embedding."""
    if HEAD not in folder.shapes:
        return
    both = zip(folder.chunks(EMBEDDING), folder.chunks(HEAD), strict=False)
    same = folder.shapes[HEAD] == folder.shapes[EMBEDDING]
    if not same or not all(np.array_equal(one, other) for one, other in both):
        raise UserError(
            f"{where}: tie_word_embeddings is true, but {HEAD} is not {EMBEDDING}; set it to false"
        )
