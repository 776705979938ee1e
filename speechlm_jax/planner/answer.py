"""Figures that every plan gives: does it fit, what does it send, what bounds it."""

import dataclasses
import math
from typing import Any

import jax

from speechlm_jax.arrays import PyTree
from speechlm_jax.planner.compile import Compiled
from speechlm_jax.planner.roofline import Bounds
from speechlm_jax.planner.slices import Slices


def answer(
    slices: Slices, compiled: Compiled, parts: dict[str, int], bounds: Bounds
) -> dict[str, Any]:
    """Returns the part of a plan's JSON object that all plans share.

    Args:
      parts: bytes on each chip, by content.
    """
    capacity = slices.chip.hbm_bytes
    return {
        "slices": slices.name,
        "chips": slices.chips,
        "fits": compiled.fits,
        "hbm_bytes": compiled.hbm_bytes,
        "capacity_bytes": capacity,
        "hbm_share": round(compiled.hbm_bytes / capacity, 4),
        "parts_bytes": parts,
        "collectives": [dataclasses.asdict(one) for one in compiled.collectives],
        "bounds_seconds": dataclasses.asdict(bounds),
        "step_seconds_bound": bounds.seconds,
        "bound": bounds.name,
        "compile_seconds": round(compiled.seconds, 1),
    }


def held_bytes(tree: PyTree) -> int:
    """Returns the bytes that a device holds of arrays, or of their shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
