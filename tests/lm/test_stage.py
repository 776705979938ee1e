"""Losses by modality and task add up; a sharded update equals an unsharded one."""

import dataclasses

import jax
import numpy as np
import pytest

from speechlm_jax.lm.stage import make_stage
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.sharding import MeshConfig
from speechlm_jax.vocab import Vocab

VOCAB = Vocab(20, 16, 12.5, "text", "tokenizer", num_spare=4, pad_to_multiple=8)
STACK = TransformerConfig(num_layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24)
CONFIG = LanguageModelConfig(VOCAB.size, STACK)
TASKS = ("text", "asr", "speech")


def batch_of(rows=4, length=12):
    """Packed rows of two or three ragged documents, padding, ids of both modalities."""
    random = np.random.default_rng(0)
    batch = {name: np.zeros((rows, length), np.int32) for name in ("ids", "segments", "positions")}
    for row in range(rows):
        at = 0
        for number in range(1, 3 + row % 2):
            size = int(random.integers(2, 5))
            here = (row, slice(at, at + size))
            batch["ids"][here] = random.integers(0, VOCAB.size, size)
            batch["segments"][here] = number
            batch["positions"][here] = np.arange(size)
            at += size
    mask = random.random((rows, length)) < 0.8
    return {**batch, "loss_mask": mask.astype(np.float32), "task": np.arange(rows) % 3}


@pytest.fixture(scope="module")
def stage(draw):
    made = make_stage(CONFIG, VOCAB, TASKS, lambda rows: iter(()), identity={"tokenizer": "t"})
    params = draw(functional(CONFIG))
    return dataclasses.replace(made, init=lambda key: (params, {}))


def test_losses_by_modality_and_by_task_add_up(stage):
    params, _ = stage.init(jax.random.key(0))
    batch = jax.tree.map(jax.numpy.asarray, batch_of())
    out = jax.jit(lambda batch: stage.loss(params, {}, batch, jax.random.key(0)))(batch)
    for names in (("loss/speech", "loss/text"), [f"loss/task/{task}" for task in TASKS]):
        parts = [out.metrics[name] for name in names]
        np.testing.assert_allclose(sum(part[0] for part in parts), out.loss_sum, rtol=1e-5)
        assert sum(part[1] for part in parts) == out.weight_sum > 0
        assert all(part[1] > 0 for part in parts)
    ids, segments, mask = batch["ids"], batch["segments"], batch["loss_mask"]
    counted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0) & (mask[:, 1:] > 0)
    assert out.metrics["loss/speech"][1] == (counted & VOCAB.is_speech(np.array(ids))[:, 1:]).sum()
    assert stage.identity == {"vocabulary": VOCAB.fingerprint, "tokenizer": "t"}


def test_sharded_equals_unsharded(stage, one_update):
    def update(mesh_config):
        state, metrics = one_update(stage, batch_of(), mesh_config)
        up = state.params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
        return jax.device_get((state, metrics)), up.sharding.shard_shape(up.shape)

    plain, shape = update(MeshConfig(fsdp=1))
    sharded, part = update(MeshConfig(fsdp=2, tensor=2))
    assert (shape, part) == ((2, 16, 24), (2, 8, 12)), "really split"
    # Adam's first step is the sign of the gradient, so a gradient near 0 may differ by its rate
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *(
        (x[0].opt_state, x[1]) for x in (plain, sharded)
    ))  # fmt: skip


def test_forty_layers_are_traced_as_four():
    """Layers are scanned: the program of a step does not grow with them."""

    def operations(num_layers):
        stack = dataclasses.replace(STACK, num_layers=num_layers)
        config = dataclasses.replace(CONFIG, transformer=stack)
        stage = make_stage(config, VOCAB, TASKS, lambda rows: iter(()))
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, jax.numpy.asarray(x).dtype)
            for name, x in batch_of().items()
        }
        key = jax.eval_shape(lambda: jax.random.key(0))
        gradient = jax.grad(lambda *given: stage.loss(*given).loss_sum)
        return str(jax.make_jaxpr(gradient)(functional(config).shapes, {}, batch, key)).count(" = ")

    assert operations(40) == operations(4) > 100
