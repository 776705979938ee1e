"""Tensors of Whisper, and of speech tokenizers made from it, by their names in released folders.

`WhisperForConditionalGeneration` of `transformers`, and `WhisperVQEncoder` of GLM-4-Voice: an
encoder up to its codebook alone, or with the layers after it and the attention decoder.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speechlm_jax.arrays import PyTree
from speechlm_jax.convert.families import LAYER, Tensor
from speechlm_jax.convert.safetensors_folder import Folder, Planned
from speechlm_jax.convert.weights import digest, plan_tensors, read_tensors
from speechlm_jax.errors import UserError
from speechlm_jax.nn.param import Functional
from speechlm_jax.sharding import param_shardings
from speechlm_jax.speech_tokenizer.model import SpeechTokenizerConfig
from speechlm_jax.speech_tokenizer.stage import functional

HEAD = "proj_out.weight"  # equal to the embedding, and mostly absent
WHOLE = "model.encoder."  # before the encoder's names in a folder that has a decoder too
PREFIXES = (WHOLE, "encoder.", "")  # that occur
MAPS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
CODEBOOK, COUNT, SUM = (f"quantizer/{name}" for name in ("codebook", "ema_count", "ema_sum"))
EMA = {"ema_count": COUNT, "ema_weight": SUM}

# A tree of dicts by path, joined by "/", and back.
_flat, _tree = partial(flatten_dict, sep="/"), partial(unflatten_dict, sep="/")


def find_prefix(names: Mapping[str, Any]) -> str:
    """Returns what stands before the encoder's names in a folder."""
    return next((found for found in PREFIXES if f"{found}conv1.weight" in names), WHOLE)


def tensors(
    config: SpeechTokenizerConfig, *, prefix: str = WHOLE, has_ema: bool = False
) -> tuple[Tensor, ...]:
    """Returns every tensor of a model.

    Args:
      prefix: what stands before the encoder's names.
      has_ema: whether the codebook's moving averages are there too.
    """
    return tuple(_tensors(config, prefix, has_ema))


def _tensors(config: SpeechTokenizerConfig, prefix: str, has_ema: bool) -> Iterator[Tensor]:
    for name in ("conv1", "conv2"):
        yield from _with_bias(f"{prefix}{name}", f"encoder/{name}")
    yield _table(f"{prefix}embed_positions.weight", "encoder/table")
    early = config.encoder.layers
    yield from _blocks(config, f"{prefix}layers.{LAYER}.", "encoder/transformer/blocks/")
    if config.quantizer is not None:
        yield _table(f"{prefix}codebook.weight", CODEBOOK)
        yield _table(f"{prefix}embed_positions2.weight", "table")
        for theirs, ours in EMA.items() if has_ema else ():
            yield _table(f"{prefix}{theirs}", ours)
    if config.post_vq_layers:
        blocks = f"{prefix}layers.{LAYER}."
        yield from _blocks(config, blocks, "late/blocks/", first=early)
        yield from _norm(f"{prefix}layer_norm", "late_norm")
    if config.decoder_layers:
        theirs = prefix.replace("encoder.", "decoder.")
        yield _table(f"{theirs}embed_tokens.weight", "embedding")
        yield _table(f"{theirs}embed_positions.weight", "text_table")
        yield from _blocks(config, f"{theirs}layers.{LAYER}.", "decoder/blocks/", cross=True)
        yield from _norm(f"{theirs}layer_norm", "decoder_norm")
        yield Tensor(HEAD, (), absent=True)


def _blocks(
    config: SpeechTokenizerConfig, theirs: str, ours: str, *, first: int = 0, cross: bool = False
) -> Iterator[Tensor]:
    """Yields the tensors of a stack whose first layer has the number `first` there."""
    biases = config.encoder.transformer().biases
    parts = {"self_attn": "attention", **({"encoder_attn": "cross"} if cross else {})}
    maps = {
        f"{part}.{name}": (f"{mine}/{key}", key)
        for part, mine in parts.items()
        for key, name in MAPS.items()
    }
    maps |= {"fc1": ("mlp/up", "up"), "fc2": ("mlp/down", "down")}
    for name, (mine, key) in maps.items():
        for tensor in _with_bias(theirs + name, ours + mine, has_bias=key in biases):
            yield _starting(tensor, first)
    norms = {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"}
    norms |= {"encoder_attn_layer_norm": "cross_norm"} if cross else {}
    for name, mine in norms.items():
        for tensor in _norm(theirs + name, ours + mine):
            yield _starting(tensor, first)


def _starting(tensor: Tensor, first: int) -> Tensor:
    return dataclasses.replace(tensor, first_layer=first)


def _with_bias(theirs: str, ours: str, *, has_bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(f"{theirs}.weight", (f"{ours}/kernel",))
    if has_bias:
        yield Tensor(f"{theirs}.bias", (f"{ours}/bias",), transposed=False)


def _norm(theirs: str, ours: str) -> Iterator[Tensor]:
    yield _table(f"{theirs}.weight", f"{ours}/scale")
    yield _table(f"{theirs}.bias", f"{ours}/bias")


def _table(theirs: str, ours: str) -> Tensor:
    return Tensor(theirs, (ours,), transposed=False)


def read_model(
    folder: Folder, config: SpeechTokenizerConfig, *, mesh: Mesh | None = None
) -> tuple[PyTree, PyTree]:
    """Reads the parameters and variables of a model.

    Variables that the folder lacks are as at the start of a training: moving averages stand at the
    codebook.

    Args:
      mesh: devices that read the parameters, each its part; None: the first device reads all.

    Raises:
      UserError: tensors are missing, unexpected or of another shape; the message lists them.
    """
    model, wanted = functional(config), tensors_in(folder, config)
    shapes = _shapes(model, wanted)
    shardings = None
    if mesh is not None:
        everywhere = dict.fromkeys(_flat(shapes), NamedSharding(mesh, PartitionSpec()))
        placed = param_shardings(model.shapes, model.axes, mesh=mesh)
        shardings = _tree({**everywhere, **_flat(placed)})
    found = _flat(read_tensors(folder, wanted, shapes, where=str(folder.path), shardings=shardings))
    params = {path: found.pop(path) for path in _flat(model.shapes)}
    variables = _flat(jax.jit(lambda: model.init(jax.random.key(0))[1])()) | found
    if config.quantizer is not None and SUM not in found:
        variables[SUM] = variables[CODEBOOK] * variables[COUNT][:, None]
    return _tree(params), _tree(variables)


def plan_model(config: SpeechTokenizerConfig, params: PyTree, variables: PyTree) -> list[Planned]:
    """Returns the tensors of a folder that a model is written as.

    A model that makes codes alone has no prefix and no moving averages, as it is released.
    """
    has_decoder = config.decoder_layers > 0
    wanted = tensors(config, prefix=WHOLE if has_decoder else "", has_ema=has_decoder)
    both = _tree({**_flat(params), **_flat(variables)})
    return plan_tensors(wanted, _shapes(functional(config), wanted), both)


def model_digest(folder: Folder, config: SpeechTokenizerConfig) -> str:
    """Returns the identity of a folder's weights: see `weights.digest`."""
    wanted = tensors_in(folder, config)
    return digest(folder, wanted, _shapes(functional(config), wanted))


def tensors_in(folder: Folder, config: SpeechTokenizerConfig) -> tuple[Tensor, ...]:
    """Returns every tensor of a model, by the names that a folder has.

    Raises:
      UserError: the model has more layers than the folder has tensors.
    """
    layers = config.encoder.layers + config.post_vq_layers + config.decoder_layers
    if layers > len(folder.shapes):
        raise UserError(
            f"{folder.path}: config.json says {layers} layers; the folder has "
            f"{len(folder.shapes)} tensors in all"
        )
    prefix = find_prefix(folder.shapes)
    return tensors(config, prefix=prefix, has_ema=f"{prefix}ema_count" in folder.shapes)


def _shapes(model: Functional, wanted: Sequence[Tensor]) -> PyTree:
    """Returns the shapes of all parameters, and of the variables that tensors hold, as one tree."""
    paths = {ours for tensor in wanted for ours in tensor.ours}
    variables = _flat(model.variable_shapes)
    held = {path: shape for path, shape in variables.items() if path in paths}
    return _tree({**_flat(model.shapes), **held})
