"""Parity with `transformers`: logits, greedy generation, and folders that it opens unchanged."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax.convert.language_model import read_config, read_params, write_params
from speechlm_jax.convert.safetensors_folder import Folder
from speechlm_jax.errors import UserError
from speechlm_jax.lm.model import ids_to_logits
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.sharding import MeshConfig, make_mesh, param_shardings

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")

IDS = np.random.default_rng(0).integers(0, 40, (3, 23))


@pytest.fixture(scope="module")
def ours(released):
    folder = Folder(released[1])
    family, config = read_config(folder)
    return config, read_params(folder, family, config, where=str(released[1]))


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def test_logits_are_those_of_transformers(released, ours):
    config, params = ours
    logits = ids_to_logits(jnp.array(IDS), model=functional(config), params=params)
    expected = theirs(released[0])
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_greedy_generations_are_those_of_transformers(released, ours):
    config, params = ours
    prompts = [IDS[0, :5], IDS[1, :11]]
    found = Inference(config, params, batch_size=2).generate(
        [GenerateRequest(prompt.tolist(), max_new=12) for prompt in prompts]
    )
    for prompt, said in zip(prompts, found, strict=True):
        with torch.no_grad():
            whole = released[0].generate(
                torch.tensor(prompt)[None], do_sample=False, max_new_tokens=12
            )
        assert whole[0, len(prompt) :].tolist() == list(said)


def test_an_exported_folder_opens_in_transformers_unchanged(released, ours, tmp_path):
    model, _ = released
    out = tmp_path / "out"
    files = list(write_params(out, *ours, length=64, dtype="float32", shard_bytes=20_000))
    assert len(files) > 4 and files[-1] == "config.json"
    again, told = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    np.testing.assert_allclose(theirs(again.eval()), theirs(model), atol=1e-6)


def test_bfloat16_is_exact_both_ways(released, ours, tmp_path):
    """What bfloat16 costs is one rounding of float32 weights; nothing else is lost or gained."""
    list(write_params(tmp_path / "one", *ours, length=64))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype="auto")
    assert type(again) is type(released[0]) and again.dtype == torch.bfloat16
    folder = Folder(tmp_path / "one")
    family, config = read_config(folder)
    params = read_params(folder, family, config, where="one")
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(ours[1]), strict=True):
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16).astype(jnp.float32))
    list(write_params(tmp_path / "two", config, params, length=64))
    for name in folder.shapes:
        np.testing.assert_array_equal(Folder(tmp_path / "two").read(name), folder.read(name))
    logits = ids_to_logits(jnp.array(IDS), model=functional(config), params=params)
    np.testing.assert_allclose(logits, theirs(again.float()), atol=1e-5)


def test_each_device_reads_its_own_part(released, ours, monkeypatch):
    config, params = ours
    functions = functional(config)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    shardings = param_shardings(params, functions.axes, mesh=mesh)
    folder = Folder(released[1])
    family, _ = read_config(folder)
    sharded = read_params(folder, family, config, where="", shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, sharded, params)
    up = sharded["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape) == (3, 12, 10)


def test_all_tensors_that_do_not_fit_are_listed(released, ours):
    folder = Folder(released[1])
    family, config = read_config(folder)
    shapes = dict(folder.shapes)
    del shapes["model.norm.weight"]
    shapes["model.extra"] = (3,)
    shapes["model.layers.1.mlp.down_proj.weight"] = (24, 19)
    folder.__dict__["shapes"] = shapes
    with pytest.raises(UserError) as told:
        read_params(folder, family, config, where="there")
    for part in ("there", "1 missing: model.norm.weight", "1 unexpected: model.extra",
                 "layers.1.mlp.down_proj.weight [24, 19] instead of [24, 20]"):  # fmt: skip
        assert part in str(told.value)


def test_glm_4_voice_comes_in_by_its_own_names_and_leaves_as_glm(glm, tmp_path):
    model, path = glm
    folder = Folder(path)
    family, config = read_config(folder)
    params = read_params(folder, family, config, where="")
    logits = ids_to_logits(jnp.array(IDS), model=functional(config), params=params)
    np.testing.assert_allclose(logits, theirs(model), atol=1e-4)
    list(write_params(tmp_path / "out", config, params, length=64, dtype="float32"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(again) is transformers.GlmForCausalLM
    np.testing.assert_allclose(theirs(again), theirs(model), atol=1e-6)


def test_a_scaled_tied_model_is_written_as_a_plain_untied_one(draw, tmp_path):
    config = LanguageModelConfig(40, TransformerConfig(2, 24, 4, 2, 8, 20))
    params = draw(functional(config))
    list(write_params(tmp_path / "out", config, params, length=64, dtype="float32"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    logits = ids_to_logits(jnp.array(IDS), model=functional(config), params=params)
    np.testing.assert_allclose(theirs(again), logits, atol=1e-4)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is none of llama"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is known"),
        ({"num_hidden_layers": None}, None),
    ],
    ids=str,
)
def test_a_config_that_is_not_ours_is_refused(released, tmp_path, change, told):
    data = {**Folder(released[1]).config, **change}
    if told is None:
        del data["num_hidden_layers"]
        told = "has no field num_hidden_layers"
    (tmp_path / "config.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match=told):
        read_config(Folder(tmp_path))


def test_a_folder_that_is_cut_short_is_named(released, tmp_path):
    copied = shutil.copytree(released[1], tmp_path / "copy")
    files = sorted(copied.glob("*.safetensors"))
    files[1].write_bytes(files[1].read_bytes()[:-100])
    folder = Folder(copied)
    with pytest.raises(UserError, match=f"{files[1].name}: is not a whole safetensors file"):
        read_config(folder)
    files[1].unlink()
    with pytest.raises(UserError, match=f"{files[1].name}: in .*index.json, but not there"):
        _ = Folder(copied).shapes


def test_nothing_is_written_over(released, ours, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        list(write_params(tmp_path, *ours, length=64))
