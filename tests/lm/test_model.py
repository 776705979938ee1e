"""`ids_to_logits`: whole documents by default, packed ones by their layout."""

import jax.numpy as jnp
import numpy as np

from speechlm_jax.lm.model import ids_to_logits
from speechlm_jax.nn.attention import Layout
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig

CONFIG = LanguageModelConfig(12, TransformerConfig(1, 8, 2, 2, 4, 12), tied=False)
IDS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_a_row_is_one_document_unless_a_layout_says_otherwise(draw):
    model = functional(CONFIG)
    params = draw(model)
    whole = ids_to_logits(IDS, model=model, params=params)
    assert whole.shape == (2, 5, 12)
    split = Layout(jnp.array([[1, 1, 1, 2, 2]] * 2), jnp.array([[0, 1, 2, 0, 1]] * 2))
    packed = ids_to_logits(IDS, model=model, params=params, layout=split)
    np.testing.assert_allclose(packed[:, :3], whole[:, :3], atol=1e-5)
    alone = ids_to_logits(IDS[:, 3:], model=model, params=params)
    np.testing.assert_allclose(packed[:, 3:], alone, atol=1e-5)
    assert not np.allclose(packed[:, 3:], whole[:, 3:], atol=1e-2)
