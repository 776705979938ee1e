"""Model FLOPs of a batch and peak FLOP/s of devices: MFU in both conventions.

A token takes 6 FLOPs per weight that multiplies it, and attention: forward 2 x 2 x length x heads x
head_dim per token and layer, twice that backward (Chowdhery et al. 2022, appendix B). `full` counts
every pair of positions of a document, `causal` the half that is not masked. Documents that share a
row do not attend to each other, so pairs are counted per document, not over the row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from speechlm_jax.arrays import Int, ndarray

# Dense bf16 FLOP/s of a chip by `device_kind`: Google Cloud's TPU pages, NVIDIA's data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Tokens and model FLOPs of a batch; counts can be added.

    Attributes:
      tokens: number of ids, padding excluded.
      flops_full, flops_causal: FLOPs of forward and backward pass, without recomputation.
    """

    tokens: float = 0.0
    flops_full: float = 0.0
    flops_causal: float = 0.0

    def __add__(self, other: "FlopCount") -> "FlopCount":
        return FlopCount(
            self.tokens + other.tokens,
            self.flops_full + other.flops_full,
            self.flops_causal + other.flops_causal,
        )

    def times(self, number: float | int) -> "FlopCount":
        """Returns the work of `number` such batches."""
        return FlopCount(*(number * value for value in dataclasses.astuple(self)))


NOTHING = FlopCount()
Measure = Callable[[Mapping[str, np.ndarray]], FlopCount]


def packed_work(weights: int, *, layers: int, heads: int, head_dim: int) -> Measure:
    """Returns the measure of a decoder-only model's work on packed rows (`segments`).

    Args:
      weights: number of parameters that multiply every token: all but the embedding table, and that
        table too if it is the output layer.
    """

    def measure(batch: Mapping[str, np.ndarray]) -> FlopCount:
        lengths = document_lengths(np.asarray(batch["segments"]))
        tokens, pairs = float(lengths.sum()), float(np.square(lengths.astype(np.float64)).sum())
        attention = 12.0 * layers * heads * head_dim * pairs
        dense = 6.0 * weights * tokens
        return FlopCount(tokens, dense + attention, dense + attention / 2)

    return measure


def document_lengths(segments: Int[ndarray, "batch length"]) -> Int[ndarray, " documents"]:
    """Returns the lengths of the documents of packed rows, padding excluded."""
    rows = np.broadcast_to(np.arange(len(segments))[:, None], segments.shape)
    most = int(segments.max(initial=0)) + 1
    counts = np.bincount((rows * most + segments).ravel(), minlength=len(segments) * most)
    counts = counts.reshape(len(segments), most)[:, 1:]
    return counts[counts > 0]


def rates(work: FlopCount, seconds: float, *, chips: int, device_kind: str) -> dict[str, float]:
    """Returns tokens per second, in all and per chip, and MFU if the chip's peak is known."""
    figures: dict[str, Any] = {
        "tokens_per_second": work.tokens / seconds,
        "tokens_per_second_per_chip": work.tokens / seconds / chips,
    }
    peak = PEAK_FLOPS.get(device_kind)
    if peak:
        figures["mfu_full"] = work.flops_full / seconds / chips / peak
        figures["mfu_causal"] = work.flops_causal / seconds / chips / peak
    return figures
