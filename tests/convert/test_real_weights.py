"""A released model, where its weights are at hand: in, extended, trained, out, as `transformers`.

    SPEECHLM_LLAMA=folder pytest -m slow tests/convert/test_real_weights.py

`folder` holds a Llama-family model of any size with its tokenizer, e.g. the SmolLM2-135M that
`python benchmarks/real_weights.py smollm2 --out folder` makes.
"""

import os
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
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.language_model import functional
from speechlm_jax.verbs.convert import convert

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")

FOLDER = os.environ.get("SPEECHLM_LLAMA", "")
PROMPTS = ("The capital of France is", "Water boils at", "Once upon a time")
TALK = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="SPEECHLM_LLAMA names no folder of a released model"),
]


def test_a_released_model_comes_in_is_trained_and_leaves(tmp_path):
    released = Path(FOLDER)
    codes, base, lm, out = (tmp_path / name for name in ("codes", "base", "lm", "out"))
    artifacts.write_jsonl(codes / "codes.jsonl", [{"id": "a", "codes": [0, 1]}])
    declare_codes(codes, tokenizer="elsewhere", frame_rate_hz=12.5, codebook_size=256)
    convert(released, run=codes, out=base)
    weights, experiment = load_language_model(base)
    vocab, text = open_vocab(base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(released, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(released)
    model = functional(experiment.model)
    ours = jax.jit(lambda params, ids: ids_to_logits(ids, model=model, params=params))

    prompts = [text.encode(prompt) for prompt in PROMPTS]
    for prompt, ids in zip(PROMPTS, prompts, strict=True):
        assert ids == tokenizer(prompt, add_special_tokens=False).input_ids
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits
        found = ours(weights.params, jnp.array([ids]))[..., : vocab.text_size]
        print(prompt, "logits differ by", float(np.abs(found - expected.numpy()).max()))
        np.testing.assert_allclose(found, expected, atol=1e-3)
    allowed = vocab.allowed("text")
    said = Inference(experiment.model, weights.params, batch_size=4).generate(
        [GenerateRequest(ids, allowed, (), 16) for ids in prompts]
    )
    for ids, reply in zip(prompts, said, strict=True):
        asked = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None}
        whole = theirs.generate(torch.tensor([ids]), repetition_penalty=1.0, **asked)
        print(text.decode(list(reply)))
        assert whole[0, len(ids) :].tolist() == list(reply)

    rows = jnp.array([[*prompts[0], vocab["begin_of_speech"], vocab.speech_offset + 5]])

    @jax.jit
    def step(params):
        def loss(params):
            logits = ids_to_logits(rows, model=model, params=params)
            taken = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), rows[:, 1:, None], -1)
            return -taken.mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient), value

    trained, losses = weights.params, []
    for _ in range(2):
        trained, loss = step(trained)
        losses.append(float(loss))
    print("losses", losses)
    assert losses[1] < losses[0]
    save_language_model(lm, experiment.model, trained, vocab)
    convert(lm, run=base, out=out, dtype="float32")
    again = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        exported = again(torch.tensor(np.asarray(rows))).logits
    found = ours(trained, rows)
    print("exported logits differ by", float(np.abs(found - exported.numpy()).max()))
    np.testing.assert_allclose(found, exported, atol=1e-3)
    reopened = transformers.AutoTokenizer.from_pretrained(out)
    assert len(reopened) == again.config.vocab_size == vocab.size
    assert reopened.apply_chat_template(TALK, tokenize=False) == tokenizer.apply_chat_template(
        TALK, tokenize=False
    )
    ends = again.generation_config.eos_token_id
    assert {tokenizer.eos_token_id, vocab["eos"]} <= set(np.atleast_1d(ends).tolist())
