"""A part of a tree and what is laid over it."""

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.train.trainable import overlay, part, select

TREE = {"embedding": 1, "blocks": {"q": {"kernel": 2, "lora_a": 3}, "norm": {"scale": 4}}}


def test_a_part_holds_what_fits_and_nothing_else():
    assert part(TREE, ()) is TREE
    assert part(TREE, ("*/lora_*",)) == {"blocks": {"q": {"lora_a": 3}}}
    assert part(TREE, ("embedding", "*/scale")) == {
        "embedding": 1, "blocks": {"norm": {"scale": 4}},
    }  # fmt: skip
    assert select(TREE, lambda path: False) == {}


def test_an_overlay_changes_the_part_alone():
    changed = overlay(TREE, {"blocks": {"q": {"lora_a": 30}}})
    assert changed == {"embedding": 1, "blocks": {"q": {"kernel": 2, "lora_a": 30},
                                                  "norm": {"scale": 4}}}  # fmt: skip
    assert TREE["blocks"]["q"]["lora_a"] == 3


def test_a_pattern_that_fits_nothing_is_named():
    with pytest.raises(UserError, match=r"'\*/lora_b' fits no parameter; the first .*'embedding'"):
        part(TREE, ("embedding", "*/lora_b"))
