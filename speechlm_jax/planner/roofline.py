"""The least time that a step can take on a slice, and what sets it: FLOPs, HBM or the network.

Each bound is a sum over the step divided by what the slice can do at best, as if everything else
were hidden behind it (Williams et al. 2009). Real steps take longer; docs/plans has by how much.
"""

import dataclasses

from speechlm_jax.planner.slices import DCN_BANDWIDTH, Slices
from speechlm_jax.train.work import PEAK_FLOPS, Work

ADAM_BYTES = 24  # a parameter: weight and two moments in float32, read and written
CAST_BYTES = 2  # a weight in bfloat16


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds of a step by what bounds it."""

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def seconds(self) -> float:
        """The least time."""
        return max(dataclasses.astuple(self))

    @property
    def name(self) -> str:
        """What sets it."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def bounds(
    slices: Slices,
    device_kind: str,
    *,
    flops: float,
    parameters: int,
    passes: int,
    ici_bytes: int,
    dcn_bytes: int,
) -> Bounds:
    """Lower bounds of a step's time.

    Args:
      flops: of the step over all chips, recomputation included.
      parameters: of the model; weights and moments lie spread over all chips.
      passes: how often a step reads all weights, as gathered in bfloat16 on each chip.
      ici_bytes, dcn_bytes: that a chip sends within its slice, and between slices.
    """
    chip = slices.chip
    read = parameters * (ADAM_BYTES / slices.chips + CAST_BYTES * passes)
    return Bounds(
        compute=flops / slices.chips / PEAK_FLOPS[device_kind],
        hbm=read / chip.hbm_bandwidth,
        ici=ici_bytes / chip.ici_bandwidth,
        dcn=dcn_bytes / DCN_BANDWIDTH,
    )


def with_recomputation(work: Work, *, head_flops: float, remat: str) -> float:
    """FLOPs of a step that makes forward values of its blocks twice.

    Args:
      work: of the batch, by the causal convention.
      head_flops: of these, the output layer's, which is never made twice.
      remat: `TransformerConfig.remat`; "dots" keeps all products with weights.
    """
    forward = (work.flops_causal - head_flops) / 3
    return work.flops_causal + (forward if remat == "full" else 0.0)
