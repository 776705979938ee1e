"""Import, extend, train, export, open in `transformers`: every family, every option it may have."""

import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_vocab
from speechlm_jax.data.declare import declare_codes
from speechlm_jax.experiment.runs import load_language_model, save_language_model
from speechlm_jax.lm.model import ids_to_logits
from speechlm_jax.nn.language_model import functional
from speechlm_jax.verbs.convert import convert

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")
sys.path.insert(0, str(Path(__file__).parent))  # whatever pytest's import mode

from conftest import LONG, SIZES, save_as_chatglm, stir  # noqa: E402

ROWS = 300
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SMALL = {**SIZES, "vocab_size": ROWS, "num_hidden_layers": 2, "hidden_size": 16}
TIED, NO_BIAS = {"tie_word_embeddings": True}, {"attention_bias": False}
DEFAULT = [
    ("Llama", {"rope_parameters": LONG}),
    ("Qwen2", TIED),
    ("Qwen3", {"head_dim": 6}),
    ("Glm", {**NO_BIAS, "partial_rotary_factor": 0.25}),
    ("Glm4", NO_BIAS),
    ("chatglm", {}),
]
SLOW = [
    ("Llama", {"head_dim": None, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    ("Llama", {**TIED, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("Qwen2", {"num_key_value_heads": 1, "max_window_layers": 1, "sliding_window": 4}),
    ("Qwen3", TIED),
    ("Glm", {}),
    ("Glm", {**NO_BIAS, **TIED}),
    ("Glm", {"rope_parameters": {**LONG, "partial_rotary_factor": 0.5}}),
    ("Glm", {"partial_rotary_factor": 1.0}),
    ("Glm", {**NO_BIAS, "partial_rotary_factor": 1.0}),
    ("Glm4", {}),
    ("Glm4", {**TIED, "partial_rotary_factor": 0.25}),
    ("chatglm", {**NO_BIAS, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}),
    ("chatglm", {"num_key_value_heads": 4}),
]
CASES = [*DEFAULT, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A folder of codes made elsewhere."""
    folder = tmp_path_factory.mktemp("codes")
    artifacts.write_jsonl(folder / "codes.jsonl", [{"id": "a", "codes": [0, 7, 1]}])
    declare_codes(folder, tokenizer="elsewhere", frame_rate_hz=12.5, codebook_size=8)
    return folder


def release(family, options, folder):
    """Writes a random model of a family; returns it."""
    name = "Glm" if family == "chatglm" else family
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    stir(model)
    save_as_chatglm(model, folder) if family == "chatglm" else model.save_pretrained(folder)
    return model


def train(run, ids, *, steps=5):
    """Steps of gradient descent; returns config, parameters and their logits of `ids`."""
    weights, experiment = load_language_model(run)
    model = functional(experiment.model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params):
        def loss(params):
            logits = ids_to_logits(ids, model=model, params=params)
            taken = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)
            return -taken.mean(), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.03 * g, params, gradient), logits

    params, before = step(weights.params)
    for _ in range(steps - 1):
        params, _ = step(params)
    return experiment.model, params, before, step(params)[1]


@pytest.mark.parametrize("family, options", CASES, ids=lambda value: str(value).replace(" ", ""))
def test_a_family_with_an_option_comes_in_is_trained_and_leaves(
    family, options, codes, tokenizer_files, tmp_path
):
    shutil.copytree(tokenizer_files, tmp_path / "released")
    released = release(family, options, tmp_path / "released")
    base, lm, out = (tmp_path / name for name in ("base", "lm", "out"))
    convert(tmp_path / "released", run=codes, out=base)
    vocab, text = open_vocab(base)
    assert vocab.text_size == ROWS and vocab.size == 512
    ids = np.random.default_rng(0).integers(0, ROWS, (2, 11))
    ids[:, -2:] = vocab["user"], vocab.speech_offset + 7
    config, params, before, logits = train(base, jnp.array(ids))
    with torch.no_grad():
        old = released(torch.tensor(ids[:, :-1])).logits
    np.testing.assert_allclose(before[:, :-1, :ROWS], old, atol=2e-5)
    assert np.abs(logits - before).max() > 0.05, "it was not trained"
    save_language_model(lm, config, params, vocab)
    convert(lm, run=base, out=out, dtype="float32")
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        exported = theirs.eval()(torch.tensor(ids)).logits
    np.testing.assert_allclose(exported, logits, atol=2e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == theirs.config.vocab_size == vocab.size
    assert tokenizer("the cat<|user|><|audio_7|>").input_ids == [
        *text.encode("the cat"), *ids[0, -2:]
    ]  # fmt: skip
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == vocab["eos"]
