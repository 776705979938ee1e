"""SmolLM2 with its released weights: our greedy continuations are those of `transformers`.

    pytest -m slow -s tests/convert/test_smollm2.py     # prints the figures; fetches 93 MB

The prompts are pieces of 21 books of Standard Ebooks and of The World Factbook, both in the public
domain, and five questions as a chat puts them.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from speechlm_jax import artifacts
from speechlm_jax.bundle.open import open_vocab
from speechlm_jax.data.declare import declare_codes
from speechlm_jax.experiment.runs import load_language_model
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.verbs.convert import convert

torch = pytest.importorskip("torch", reason="needs the `oracles` extra")
transformers = pytest.importorskip("transformers", reason="needs the `oracles` extra")

PROMPTS = json.loads(Path(__file__).with_name("smollm2_prompts.json").read_text(encoding="utf-8"))
PARAMETERS = 134_515_008
NEW = 32  # ids of a continuation
TIE = 1e-3  # of two logits in float32, between two orders of summation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def released(fetch_release):
    """The folder that the script makes."""
    out, told = fetch_release("smollm2")
    assert told["parameters"] == PARAMETERS
    return out


@pytest.fixture(scope="module")
def theirs(released):
    model = transformers.AutoModelForCausalLM.from_pretrained(released, dtype="float32").eval()
    assert model.num_parameters() == PARAMETERS
    return model


@pytest.fixture(scope="module")
def base(released, tmp_path_factory):
    """The run that `speechlm convert` makes of it, for codes made elsewhere."""
    top = tmp_path_factory.mktemp("base")
    artifacts.write_jsonl(top / "codes/codes.jsonl", [{"id": "a", "codes": [0, 1]}])
    declare_codes(top / "codes", tokenizer="elsewhere", frame_rate_hz=12.5, codebook_size=256)
    convert(released, run=top / "codes", out=top / "base")
    return top / "base"


def test_greedy_continuations_are_those_of_transformers(released, theirs, base):
    """Where each id is the best after those before it, greedy decoding says the same ids."""
    weights, experiment = load_language_model(base)
    vocab, text = open_vocab(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(released)
    prompts = tokenizer(PROMPTS, add_special_tokens=False).input_ids
    for prompt, ids in zip(PROMPTS, prompts, strict=True):
        assert text.encode(prompt) == ids or "<|im_start|>" in prompt  # to us, that is plain text
    allowed = vocab.allowed("text")
    requests = [GenerateRequest(ids, allowed, (), NEW) for ids in prompts]
    said = Inference(experiment.model, weights.params, batch_size=10).generate(requests)
    alone = Inference(experiment.model, weights.params, batch_size=1)
    assert [alone.generate([request])[0] for request in requests] == said
    assert "Rome" in text.decode(said[-1])
    margins = []
    for ids, reply in zip(prompts, said, strict=True):
        assert len(reply) == NEW
        with torch.no_grad():
            logits = theirs(torch.tensor([[*ids, *reply[:-1]]])).logits[0, len(ids) - 1 :].numpy()
        differ = np.flatnonzero(logits.argmax(-1) != reply)
        if differ.size:
            second, first = np.sort(logits[differ[0]])[-2:]
            margins.append(float(first - second))
            print(text.decode(ids), "differs at", differ[0], "where the two best are", margins[-1])
    print(f"{len(prompts) - len(margins)} of {len(prompts)} continuations are equal")
    assert all(margin < TIE for margin in margins)
