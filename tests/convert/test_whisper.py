"""Parity with `transformers`' Whisper, and with a WhisperVQ written here from its description."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from speechlm_jax.convert.safetensors_folder import Folder, write_folder
from speechlm_jax.convert.whisper import (
    model_digest,
    plan_model,
    read_model,
)
from speechlm_jax.convert.whisper_config import config_from_json, config_to_json
from speechlm_jax.errors import UserError
from speechlm_jax.nn.losses import cross_entropy
from speechlm_jax.speech_tokenizer.decoding import AttentionReader, WritingConfig
from speechlm_jax.speech_tokenizer.stage import functional

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
F = torch.nn.functional

SUPPRESSED, AT_FIRST = [3, 7, 11], [5, 59]
SIZES = {
    "vocab_size": 60, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "num_mel_bins": 80, "max_source_positions": 24,
    "max_target_positions": 20, "decoder_start_token_id": 57, "eos_token_id": 56,
    "bos_token_id": 56, "pad_token_id": 56, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
CASES = {"80 mels": {}, "turbo": {"num_mel_bins": 128, "encoder_layers": 4, "decoder_layers": 1}}
MEL_FRAMES = 2 * SIZES["max_source_positions"]


def stirred(model):
    """Norms and biases start at ones and zeros, small matrices at nearly nothing: mistakes hide."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
            elif "encoder.embed_positions" not in name:
                tensor.mul_(6.0)
    return model.eval()


@pytest.fixture(scope="module", params=CASES)
def released(request, tmp_path_factory):
    """(model of transformers, folder that it was saved in, our config and arrays of it)."""
    config = transformers.WhisperConfig(**{**SIZES, **CASES[request.param]})
    torch.manual_seed(0)
    model = stirred(transformers.WhisperForConditionalGeneration(config))
    path = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(path, max_shard_size="20KB")
    folder = Folder(path)
    assert len(set(folder.file_of.values())) > 3
    generation = {"suppress_tokens": SUPPRESSED, "begin_suppress_tokens": AT_FIRST}
    ours = config_from_json(folder.config, "there", generation=generation)
    return model, folder, ours, *read_model(folder, ours)


@pytest.fixture(scope="module")
def heard(released):
    """(mel frames, ids with lengths): a batch whose second transcript is padded."""
    random = np.random.default_rng(1)
    mels = released[2].encoder.num_mels
    mel = random.normal(size=(2, MEL_FRAMES, mels)).astype(np.float32)
    ids = random.integers(0, 56, (2, 9)).astype(np.int32)
    ids[:, 0] = 57
    return mel, ids, np.array([9, 5], np.int32)


def theirs(model, mel, ids, lengths):
    """(encoder's states, logits, loss) with gradients left in the model."""
    model.zero_grad()
    features = torch.tensor(mel).transpose(1, 2)
    targets = torch.tensor(ids).long().roll(-1, 1)
    places = torch.arange(ids.shape[1])[None]
    targets[places >= torch.tensor(lengths)[:, None] - 1] = -100
    out = model(features, decoder_input_ids=torch.tensor(ids).long(), labels=targets)
    out.loss.backward()
    return out.encoder_last_hidden_state.detach(), out.logits.detach(), float(out.loss.detach())


def test_states_logits_loss_and_gradients_are_those_of_transformers(released, heard):
    model, _, config, params, variables = released
    mel, ids, lengths = heard
    states, logits, loss = theirs(model, mel, ids, lengths)
    mel, ids, lengths = map(jnp.asarray, heard)
    mel_lengths = jnp.array([MEL_FRAMES] * 2)

    def run(params):
        tokenizer = functional(config).bind(params, variables)
        memory, frame_mask = tokenizer.mel_to_memory(mel, mel_lengths)
        said = tokenizer.read(memory, frame_mask, ids, lengths)
        counted = jnp.arange(ids.shape[1])[None] < lengths[:, None] - 1
        lost = cross_entropy(said, jnp.roll(ids, -1, axis=1)) * counted
        return jnp.sum(lost) / jnp.sum(counted), (memory, said)

    run = jax.jit(jax.value_and_grad(run, has_aux=True))
    (lost, (memory, said)), grads = run(params)
    assert states.std() > 0.3 and logits.std() > 0.3
    np.testing.assert_allclose(memory, states, atol=2e-4)
    counted = np.arange(ids.shape[1])[None] < lengths[:, None]
    np.testing.assert_allclose(np.asarray(said)[counted], logits.numpy()[counted], atol=2e-4)
    assert float(lost) == pytest.approx(loss, abs=1e-5)
    named = {p.name: p.make() for p in plan_model(config, grads, variables)}
    for name, tensor in model.named_parameters():
        if name in named and tensor.grad is not None:
            told = tensor.grad.numpy()
            off = np.linalg.norm(named.pop(name) - told)
            assert off < 1e-3 * np.linalg.norm(told) + 1e-7, name
    assert list(named) == ["model.encoder.embed_positions.weight"]  # which nothing trains


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(released, heard, beams):
    """Greedily id for id; a beam is OpenAI's, not theirs, so it finds what is no less likely."""
    model, _, config, params, variables = released
    mel, prompt = heard[0], [57, 50, 51]
    writing = WritingConfig(beams=beams, max_ids=16)
    reader = AttentionReader(config, params, variables, writing=writing)
    found = reader.mels_to_ids(list(mel), prompt=prompt)
    with torch.no_grad():
        said = transformers.GenerationMixin.generate(
            model, torch.tensor(mel).transpose(1, 2), do_sample=False, max_length=16,
            decoder_input_ids=torch.tensor([prompt] * 2), suppress_tokens=SUPPRESSED,
            begin_suppress_tokens=AT_FIRST,
        )  # fmt: skip
    greedy = [[i for i in row[3:].tolist() if i != 56] for row in said]
    assert all(greedy)
    if beams == 1:
        assert found == greedy
    else:
        whole = [_likelihood(model, mel[i], [*prompt, *found[i]], 16) for i in range(2)]
        assert all(
            one >= _likelihood(model, mel[i], [*prompt, *greedy[i]], 16) - 1e-4
            for i, one in enumerate(whole)
        )


def _likelihood(model, mel, ids, length):
    """Log-probability per id of a transcript, with its end if it has one."""
    ids = [*ids, 56] if len(ids) < length else ids
    with torch.no_grad():
        features = torch.tensor(mel).T[None]
        logits = model(features, decoder_input_ids=torch.tensor([ids])).logits[0]
    logits[:, SUPPRESSED] = -1e30
    logits[2, AT_FIRST] = -1e30
    follow = logits.log_softmax(-1)
    total = sum(float(follow[i - 1, ids[i]]) for i in range(3, len(ids)))
    return total / (len(ids) - 3 - (ids[-1] == 56) or 1)


def written(path, config, params, variables):
    planned = plan_model(config, params, variables)
    list(write_folder(path, planned, config_to_json(config, dtype="float32"), dtype="float32"))
    return Folder(path)


def test_an_exported_folder_opens_in_transformers_and_is_bit_equal(released, heard, tmp_path):
    model, folder, config, params, variables = released
    again = written(tmp_path / "out", config, params, variables)
    opened, told = type(model).from_pretrained(again.path, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name
    assert set(again.shapes) == set(folder.shapes) - {"proj_out.weight"}
    back = config_from_json(again.config, "there")
    assert dataclasses.replace(back, text=config.text) == config
    for one, other in zip(read_model(again, back), (params, variables), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert model_digest(again, back) == model_digest(folder, config)


def test_the_identity_of_weights_is_theirs(released, tmp_path):
    _, folder, config, params, variables = released
    bias = params["encoder"]["conv1"]["bias"]
    other = {**params, "encoder": {**params["encoder"], "conv1": {
        **params["encoder"]["conv1"], "bias": bias.at[3].add(1e-6)}}}  # fmt: skip
    changed = written(tmp_path / "out", config, other, variables)
    assert model_digest(changed, config) != model_digest(folder, config)


def test_all_tensors_that_do_not_fit_are_listed(released):
    _, folder, config, *_ = released
    odd = Folder(folder.path)
    shapes = dict(folder.shapes)
    del shapes["model.encoder.layer_norm.bias"]
    shapes["model.extra"] = (3,)
    shapes["model.encoder.conv1.weight"] = (32, 80, 5)
    odd.__dict__["shapes"] = shapes
    with pytest.raises(UserError) as told:
        read_model(odd, config)
    for part in ("1 missing: model.encoder.layer_norm.bias", "1 unexpected: model.extra",
                 "model.encoder.conv1.weight [32, 80, 5] instead of [32, "):  # fmt: skip
        assert part in str(told.value)


@pytest.mark.parametrize(
    "field, value, told",
    [
        ("activation_function", "relu", "activation_function is 'relu'; only 'gelu' is known"),
        ("decoder_ffn_dim", 40, "encoder_ffn_dim is 48, decoder_ffn_dim 40; only equal ones"),
        ("encoder_causal_attention", True, "encoder_causal_attention is True"),
        ("d_model", "wide", "d_model is 'wide', not a whole number above 0"),
        ("encoder_attention_heads", 5, "only equal ones"),
        ("eos_token_id", None, "must be ids"),
        ("eos_token_id", 60, "text: has id 60; text_size is 60"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(field, value, told):
    with pytest.raises(UserError, match=told):
        config_from_json({**SIZES, "model_type": "whisper", field: value}, "there")


# A WhisperVQ, as the released tokenizer is described (convolutions that hear the past, attention
# in blocks, pooling, the nearest entry): tensors by their released names, in plain functions.
CODED = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 4, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "num_mel_bins": 80, "max_source_positions": 60, "vocab_size": 60,
    "pooling_kernel_size": 4, "pooling_type": "avg", "pooling_position": 2,
    "quantize_position": 2, "quantize_vocab_size": 32, "quantize_causal_block_size": 8,
    "encoder_causal_convolution": True, "quantize_encoder_only": True, "quantize_ema_decay": 0.99,
}  # fmt: skip


def coder_tensors(data, layers, seed=0):
    """Random tensors of an encoder up to its codebook."""
    width, mlp, random = data["d_model"], data["encoder_ffn_dim"], np.random.default_rng(seed)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32) * (0.3 if len(shape) == 1 else 0.4)

    def affine(name, out, inputs, *kernel):
        made[f"{name}.weight"] = draw(out, inputs, *kernel)
        made[f"{name}.bias"] = draw(out)

    made = {}
    affine("conv1", width, data["num_mel_bins"], 3)
    affine("conv2", width, width, 3)
    made["embed_positions.weight"] = draw(data["max_source_positions"], width)
    for layer in range(layers):
        for name in ("q_proj", "v_proj", "out_proj"):
            affine(f"layers.{layer}.self_attn.{name}", width, width)
        made[f"layers.{layer}.self_attn.k_proj.weight"] = draw(width, width)
        affine(f"layers.{layer}.fc1", mlp, width)
        affine(f"layers.{layer}.fc2", width, mlp)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            made[f"layers.{layer}.{name}.weight"] = 1 + draw(width)
            made[f"layers.{layer}.{name}.bias"] = draw(width)
    pooled = math.ceil(data["max_source_positions"] / data["pooling_kernel_size"])
    made["codebook.weight"] = 3 * draw(data["quantize_vocab_size"], width)
    made["embed_positions2.weight"] = draw(pooled, width)
    return made


def coder(tensors, data, mel, mel_mask):
    """mel [batch, mels, frames], mask [batch, frames] -> latents and distances to all entries."""
    t = {name: torch.tensor(value) for name, value in tensors.items()}

    def conv(x, name, stride):
        weight, bias = t[f"{name}.weight"], t[f"{name}.bias"]
        return F.gelu(F.conv1d(F.pad(x, (2, 0)), weight, bias, stride))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"])

    x = conv(conv(mel, "conv1", 1), "conv2", 2).transpose(1, 2)
    x = x + t["embed_positions.weight"][: x.shape[1]]
    mask, block = mel_mask[:, ::2], data["quantize_causal_block_size"]
    places = torch.arange(x.shape[1])
    allowed = places[:, None] >= places[None]
    if block is not None:
        allowed = allowed | (places[:, None] // block == places[None] // block)
    else:
        allowed = torch.ones_like(allowed)
    seen = (allowed[None] & mask[:, None])[:, None]
    heads = data["encoder_attention_heads"]
    for layer in range(data["quantize_position"]):
        at = f"layers.{layer}."
        y = norm(x, f"{at}self_attn_layer_norm")
        q, k, v = (
            F.linear(y, t[f"{at}self_attn.{n}_proj.weight"], t.get(f"{at}self_attn.{n}_proj.bias"))
            .unflatten(-1, (heads, -1)).transpose(1, 2)
            for n in "qkv"
        )  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        x = x + F.linear(y, t[f"{at}self_attn.out_proj.weight"], t[f"{at}self_attn.out_proj.bias"])
        y = F.gelu(F.linear(norm(x, f"{at}final_layer_norm"), t[f"{at}fc1.weight"],
                            t[f"{at}fc1.bias"]))  # fmt: skip
        x = x + F.linear(y, t[f"{at}fc2.weight"], t[f"{at}fc2.bias"])
    pool = data["pooling_kernel_size"]
    x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % pool))
    x = (F.avg_pool1d if data["pooling_type"] == "avg" else F.max_pool1d)(x, pool).transpose(1, 2)
    return x, torch.cdist(x, t["codebook.weight"]), mask[:, ::pool]


@pytest.fixture(scope="module", params=["blocks", "whole", "max"])
def coded(request, tmp_path_factory):
    """(data of config.json, tensors, folder) of an encoder that makes codes."""
    changed = {
        "blocks": {},
        "whole": {"quantize_causal_block_size": None, "num_mel_bins": 128},
        "max": {"pooling_type": "max", "pooling_kernel_size": 2},
    }
    data = {**CODED, **changed[request.param]}
    tensors = coder_tensors(data, layers=data["quantize_position"])
    path = tmp_path_factory.mktemp("coder") / request.param
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(data), encoding="utf-8")
    return data, tensors, Folder(path)


def test_codes_are_those_of_the_described_tokenizer(coded):
    """Clips of odd lengths, in one batch: filled up to whole codes, and to the longest."""
    data, tensors, folder = coded
    config = config_from_json(data, "there", has_decoder=False)
    params, variables = read_model(folder, config)
    tokenizer, random = functional(config).bind(params, variables), np.random.default_rng(3)
    lengths = np.array([96, 41, 7, 64, 83])
    mel = random.normal(size=(5, 96, data["num_mel_bins"])).astype(np.float32)
    mask = torch.arange(96)[None] < torch.tensor(lengths)[:, None]
    latents, distances, valid = coder(tensors, data, torch.tensor(mel).transpose(1, 2), mask)
    run = jax.jit(
        lambda mel, n: (tokenizer.encoder.latents(tokenizer.encoder.states(mel, n)),
                        tokenizer.mel_to_codes(mel, n))
    )  # fmt: skip
    ours, codes = run(mel, lengths)
    kept = np.asarray(tokenizer.encoder.valid_frames(jnp.array(lengths), codes.shape[1]))
    np.testing.assert_array_equal(kept, valid.numpy())
    np.testing.assert_allclose(np.asarray(ours)[kept], latents.numpy()[kept], atol=2e-4)
    nearest = distances.square().topk(2, largest=False)
    clear = kept & (nearest.values.diff(dim=-1)[..., 0] > 1e-4).numpy()
    assert clear.sum() > 0.9 * kept.sum() and len(np.unique(np.asarray(codes)[clear])) > 3
    np.testing.assert_array_equal(np.asarray(codes)[clear], nearest.indices[..., 0].numpy()[clear])


def test_an_encoder_that_makes_codes_goes_out_as_it_came_in(coded, tmp_path):
    data, tensors, folder = coded
    config = config_from_json(data, "there", has_decoder=False)
    params, variables = read_model(folder, config)
    averages = variables["quantizer"]
    np.testing.assert_allclose(averages["ema_sum"], averages["codebook"])
    again = written(tmp_path / "out", config, params, variables)
    assert set(again.shapes) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(again.read(name), value)
    assert config_from_json(again.config, "there", has_decoder=False) == config


def test_late_layers_start_where_the_early_ones_end(tmp_path):
    """A tokenizer with the layers after its codebook, and a decoder; and its moving averages."""
    more = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
    ids = {"eos_token_id": 1, "decoder_start_token_id": 2}
    data = {**CODED, **more, **ids, "quantize_encoder_only": False}
    config = config_from_json(data, "there")
    assert (config.encoder.layers, config.post_vq_layers, config.decoder_layers) == (2, 2, 1)
    model = functional(config)
    params, variables = jax.jit(model.init)(jax.random.key(0))
    variables["quantizer"]["ema_count"] = 2 + jnp.arange(32.0)
    folder = written(tmp_path / "out", config, params, variables)
    last = params["late"]["blocks"]["mlp"]["up"]["kernel"][1]
    np.testing.assert_array_equal(folder.read("model.encoder.layers.3.fc1.weight").T, last)
    back = config_from_json(folder.config, "there")
    assert dataclasses.replace(back, text=config.text) == config
    for one, other in zip(read_model(folder, config), (params, variables), strict=True):
        found, told = (flatten_dict(tree, sep="/") for tree in (one, other))
        assert found.keys() == told.keys()
        for path in told:
            np.testing.assert_array_equal(found[path], told[path], path)


def test_a_clip_has_a_code_for_each_begun_group_of_its_samples():
    config = config_from_json(CODED, "there", has_decoder=False)
    config = dataclasses.replace(
        config, encoder=dataclasses.replace(config.encoder, max_frames=1500)
    )
    assert config.samples_per_frame == 1280
    for samples in np.random.default_rng(5).integers(1, 480_001, 200).tolist():
        hop = config.mel.hop_length
        filled = config.padded_samples(samples)
        assert filled % 1280 == 0 and 0 <= filled - samples < 1280
        assert config.num_codes(samples) == math.ceil(samples / 1280)
        assert config.encoder.num_codes(math.ceil(samples / hop)) == config.num_codes(samples)
        assert config.encoder.num_codes(filled // hop) == config.num_codes(samples)
