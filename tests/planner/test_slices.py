"""Shapes and Cloud's names mean the same slices; what is no slice is named."""

import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.planner.slices import CHIPS, CUBES, SQUARES, parse_accelerator, parse_topology


@pytest.mark.parametrize(
    "accelerator, topology, chips",
    [
        ("v5p-128", "v5p:4x4x4", 64),  # cores
        ("v4-8", "v4:2x2x1", 4),
        ("v5litepod-32", "v5e:4x8", 32),  # chips
        ("v6e-64", "v6e:8x8", 64),
    ],
)
def test_names_count_cores_or_chips(accelerator, topology, chips):
    slices = parse_accelerator(accelerator)
    assert slices == parse_topology(topology) and slices.chips == chips
    assert slices.name == topology


def test_every_known_size_is_a_shape_of_so_many_chips():
    for sizes, kind in ((SQUARES, "v6e"), (CUBES, "v5p")):
        for chips, shape in sizes.items():
            assert parse_topology(f"{kind}:{shape}").chips == chips


def test_several_slices():
    slices = parse_topology("v6e:8x8", slices=2)
    assert slices.chips == 128 and slices.chips_a_slice == 64 and slices.name == "2 x v6e:8x8"


@pytest.mark.parametrize(
    "parse, text, told",
    [
        (parse_topology, "v7:2x2", "no chip 'v7'; known: v4, v5e, v5p, v6e"),
        (parse_topology, "v5p:4x4", "v5p has 3 axes, e.g. v5p:4x4x4"),
        (parse_topology, "v6e:8x8x1", "v6e has 2 axes"),
        (parse_topology, "v6e:0x8", "v6e has 2 axes"),
        (parse_topology, "v6e", "v6e has 2 axes"),
        (parse_accelerator, "v5e-8", "is none of v4-N, v5litepod-N, v5p-N, v6e-N"),
        (parse_accelerator, "v5p-12", "no such slice; known: v5p-8, v5p-16"),
        (parse_accelerator, "v6e-3", "no such slice; known: v6e-1, v6e-4"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_no_slice_is_named(parse, text, told):
    with pytest.raises(UserError, match=told):
        parse(text)
    with pytest.raises(UserError, match="--slices 0"):
        parse_topology("v6e:8x8", slices=0)


def test_chips_have_sensible_figures():
    for chip in CHIPS.values():
        assert 15e9 < chip.hbm_bytes < 110e9 and chip.ici_bandwidth < chip.hbm_bandwidth
