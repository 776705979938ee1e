"""Lower bound of a step's time on a slice, and what sets it: FLOPs, HBM or the network.

Each bound is a sum over the step divided by the slice's peak rate, as if everything else were
hidden behind it (Williams et al. 2009). Real steps take longer; docs/plans says by how much.
"""

import dataclasses
from collections.abc import Iterable

from speechlm_jax.nn.transformer import TransformerConfig
from speechlm_jax.planner.collectives import Collective
from speechlm_jax.planner.slices import Slices


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Lower bounds of the seconds of a step, by resource."""

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def seconds(self) -> float:
        """The largest bound, which no step can beat."""
        return max(dataclasses.astuple(self))

    @property
    def name(self) -> str:
        """Name of the resource that sets the largest bound."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def bounds(
    slices: Slices,
    *,
    flops: float,
    hbm_bytes: float,
    moved: Iterable[Collective],
) -> Bounds:
    """Returns lower bounds of a step's time.

    Args:
      flops: FLOPs of the step over all chips, recomputation included.
      hbm_bytes: bytes that each chip must read and write.
      moved: collectives of each chip.
    """
    chip = slices.chip
    sent = {"ici": 0, "dcn": 0}
    for one in moved:
        sent[one.network] += one.wire_bytes
    return Bounds(
        compute=flops / slices.chips / chip.peak_flops,
        hbm=hbm_bytes / chip.hbm_bandwidth,
        ici=sent["ici"] / chip.ici_bandwidth,
        dcn=sent["dcn"] / chip.dcn_bandwidth,
    )


def recomputed(stack: TransformerConfig, length: int) -> float:
    """Returns the FLOPs per token that the backward pass recomputes, causal, one document a row.

    A block's last product is never recomputed: nothing needs it. "dots" recomputes the attention;
    so does "full", even if its result is saved, because its backward pass needs its softmax's sums.
    """
    execution = stack.execution
    if execution.remat == "none":
        return 0.0
    attention = 2.0 * stack.heads * stack.head_dim * length
    products = 0.0
    if execution.remat == "full":
        width, kv_width = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
        products = 2.0 * stack.embed * (width + 2 * stack.mlp)
        if "qkv" not in (*execution.saved, *execution.offloaded):
            products += 2.0 * stack.embed * (width + 2 * kv_width)
    return stack.num_layers * (products + attention)
