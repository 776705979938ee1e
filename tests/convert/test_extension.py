"""Old rows stay bit for bit; new ones follow the rule, and do not depend on who reads them."""

import numpy as np
import pytest

from speechlm_jax.convert.extension import Extended
from speechlm_jax.convert.language_model import read_config, read_params, write_params
from speechlm_jax.convert.safetensors_folder import Folder
from speechlm_jax.errors import UserError

NEW = 40 + 4000


@pytest.fixture(scope="module")
def longer(released):
    folder = Folder(released[1])
    family, config = read_config(folder)
    return folder, Extended(folder, family.tensors(config), NEW, seed=3)


def vocabulary_tensors(folder):
    return folder.shapes.keys() & {"model.embed_tokens.weight", "lm_head.weight"}


def test_old_rows_stay_and_new_rows_are_near_their_mean(longer):
    folder, source = longer
    for name in vocabulary_tensors(folder):
        old, rows = folder.read(name), source.read(name)
        assert source.shapes[name] == rows.shape == (NEW, 24)
        np.testing.assert_array_equal(rows[:40], old)
        new = rows[40:]
        np.testing.assert_allclose(new.mean(axis=0), old.mean(axis=0), atol=0.02 * old.std())
        np.testing.assert_allclose(new.std(axis=0), 0.1 * old.std(axis=0), rtol=0.1)


def test_a_part_is_the_same_whoever_reads_it(longer):
    folder, source = longer
    again = Extended(folder, source.tensors, NEW, seed=3)
    for name in vocabulary_tensors(folder):
        whole = source.read(name)
        for rows in (slice(0, 20), slice(30, 60), slice(50, 52)):
            part = again.read(name, rows, slice(4, 9))
            np.testing.assert_array_equal(part, whole[rows, 4:9])
        other = Extended(folder, source.tensors, NEW, seed=4).read(name, slice(40, 41))
        assert not np.allclose(other, whole[40])


def test_other_tensors_are_the_folders_and_no_row_is_lost(longer):
    folder, source = longer
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(source.read(name), folder.read(name))
    with pytest.raises(UserError, match="has 40 ids, more than 39"):
        _ = Extended(folder, source.tensors, 39).shapes


def test_new_rows_are_stored_as_the_old_ones_are(released, tmp_path):
    """So that a bfloat16 model that nobody trained is exported bit for bit."""
    folder = Folder(released[1])
    family, config = read_config(folder)
    params = read_params(folder, family, config, where="")
    list(write_params(tmp_path / "short", config, params, length=64, dtype="bfloat16"))
    stored = Folder(tmp_path / "short")
    longer = Extended(stored, family.tensors(config), 60)
    for name in vocabulary_tensors(stored):
        assert longer.read(name).dtype == longer.read(name, slice(50, 52)).dtype == "bfloat16"
