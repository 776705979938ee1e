"""The loss falls on the speech alone, and the accuracy counts the same ids."""

import jax
import numpy as np
from scipy.special import log_softmax, logsumexp

from speechlm_jax.data.formats import Writer, example_to_document
from speechlm_jax.nn.attention import Layout
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.text_to_token.stage import make_stage

STACK = TransformerConfig(num_layers=1, embed=8, heads=2, kv_heads=2, head_dim=4, mlp=12)


def test_only_speech_counts(text, vocab, draw):
    document = example_to_document(Writer(vocab, text).voiced_tts([3, 1, 4], "bob has", "low"))
    size = len(document.ids)
    batch = {
        "ids": document.ids[None],
        "segments": np.ones((1, size), np.int32),
        "positions": np.arange(size, dtype=np.int32)[None],
        "loss_mask": document.loss_mask[None].astype(np.float32),
    }
    batch = jax.tree.map(jax.numpy.asarray, batch)
    config = LanguageModelConfig(vocab.size, STACK, tied=False)
    params = draw(functional(config))
    stage = make_stage(config, vocab, lambda rows: iter(()), identity={"plan": "p"})
    forward = functional(config).bind(params)

    @jax.jit
    def run(batch):
        layout = (batch["segments"], batch["positions"])
        from_model = forward(batch["ids"], Layout(*layout))
        return stage.loss(params, {}, batch, jax.random.key(0)), from_model

    out, logits = run(batch)
    # what is said: begin of speech, three codes, end of speech, end of document
    places = np.arange(size - 6, size)
    logprobs = log_softmax(logits[0], axis=-1)
    np.testing.assert_allclose(
        out.loss_sum, -logprobs[places - 1, document.ids[places]].sum(), rtol=1e-5
    )
    assert out.weight_sum == 6 and out.metrics["accuracy"][1] == 6
    right = (logits[0].argmax(-1)[places - 1] == document.ids[places]).sum()
    assert out.metrics["accuracy"][0] == right
    weighed = make_stage(config, vocab, lambda rows: iter(()), z_loss=0.1)
    more = jax.jit(weighed.loss)(params, {}, batch, jax.random.key(0)).loss_sum - out.loss_sum
    squares = logsumexp(logits[0], axis=-1)[places - 1] ** 2
    np.testing.assert_allclose(more, 0.1 * squares.sum(), rtol=1e-3)
    assert stage.identity == {"vocabulary": vocab.fingerprint, "plan": "p"}
