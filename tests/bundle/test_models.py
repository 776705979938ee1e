"""A bundle's language models over a mesh: each device has its part, and nothing else changes."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_stages import SMALL, TEXTS, write_rows

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_bundle
from speechlm_jax.codes import CodesIdentity
from speechlm_jax.data.formats import Writer
from speechlm_jax.errors import UserError
from speechlm_jax.experiment import runs
from speechlm_jax.nn.inference import GenerateRequest, ScoreRequest
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.sampling import Sampling
from speechlm_jax.sharding import MeshConfig, make_mesh
from speechlm_jax.text import TextTokenizer, make_vocab
from speechlm_jax.vocab_files import VOCAB

MESHES = {
    "requests": MeshConfig(replica=2, fsdp=2),
    "weights": MeshConfig(replica=1, fsdp=2, tensor=2),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, draw):
    """A language model's folder with its vocabulary, and a mixture of held-out rows."""
    folder = tmp_path_factory.mktemp("models")
    text = TextTokenizer.train([" ".join(TEXTS)], kind="word")
    vocab = make_vocab(text, CodesIdentity("tokenizer", 12.5, 16))
    config = LanguageModelConfig(vocab.size, SMALL, tied=False)
    runs.save_language_model(folder / "lm", config, draw(functional(config)), vocab)
    text.save(folder / "lm/text.model")
    artifacts.write_json(folder / "lm" / VOCAB, vocab.to_json())
    examples = [Writer(vocab, text).text(line) for line in TEXTS * 9]
    return folder / "lm", write_rows(folder / "rows", vocab, text, examples)


def answers(lm, mixture, mesh):
    """All that a model is asked: greedy and sampled replies, scores, and losses of rows."""
    bundle = open_bundle(lm, batch_size=3, mesh=mesh)
    model, size = bundle.part_model("lm"), bundle.vocab.size
    spoken, _ = runs.load_inference(
        lm, batch_size=3, sayable=bundle.vocab.allowed("speech", specials=("end_of_speech",)),
        mesh=mesh,
    )  # fmt: skip
    random = np.random.default_rng(0)
    # of one padded length: each length compiles its own program
    prompts = [random.integers(0, size, 1 + 5 * i % 8).tolist() for i in range(7)]
    asked = [
        GenerateRequest(prompt, stops=(3,), max_new=3 + i, seed=i, sampling=Sampling(float(i % 2)))
        for i, prompt in enumerate(prompts)
    ]
    scored = [ScoreRequest(prompt, prompts[i - 1]) for i, prompt in enumerate(prompts)]
    losses = runs.held_out_losses(lm, mixture=mixture, mesh=mesh)["task"]
    codes = spoken.generate([dataclasses.replace(request, stops=()) for request in asked])
    return model.generate(asked) + codes, model.score(scored), [row.loss_sum for row in losses]


@pytest.fixture(scope="module")
def alone(trained):
    return answers(*trained, None)


@pytest.mark.parametrize(
    "mesh_config", [pytest.param(MESHES["requests"], marks=pytest.mark.slow), MESHES["weights"]]
)
def test_answers_over_a_mesh_are_those_of_one_device(trained, alone, mesh_config):
    replies, scores, losses = answers(*trained, make_mesh(mesh_config))
    assert replies == alone[0] and any(map(len, replies))
    np.testing.assert_allclose(scores, alone[1], rtol=1e-5)
    np.testing.assert_allclose(losses, alone[2], rtol=1e-5)


def test_each_device_reads_its_part_of_the_weights(trained):
    mesh = make_mesh(MESHES["weights"])
    weights, _ = runs.load_language_model(trained[0], mesh=mesh)
    whole, _ = runs.load_language_model(trained[0])
    jax.tree.map(np.testing.assert_array_equal, weights.params, whole.params)
    for leaf in jax.tree.leaves(weights.params):
        part = leaf.addressable_shards[0].data.size
        is_norm = leaf.size == SMALL.embed
        assert leaf.sharding.mesh == mesh and part == leaf.size // (1 if is_norm else 2)


def test_a_model_that_does_not_divide_over_the_mesh_names_the_weight(trained):
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=3), devices=jax.devices()[:3])
    with pytest.raises(UserError, match=r"embedding: axis 'vocab' has .* which do not divide"):
        open_bundle(trained[0], mesh=mesh).part_model("lm")
