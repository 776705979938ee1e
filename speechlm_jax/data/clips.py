"""Batches clips in a few static lengths: the stream for stages that train on audio.

The stream is a function of (clips, config, seed, rows seen): each epoch visits every clip of every
bucket once, in an order of its own, so a restart continues where the run stopped. The first clips
of that order also fill up a bucket's last batch.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BucketConfig:
    """Settings for batching clips.

    Attributes:
      batch_size: clips per batch, over all hosts.
      edges: greatest length of each bucket in mel frames, ascending; longer clips are left out.
      seed: seed of the order.
    """

    batch_size: int = 16
    edges: tuple[int, ...] = (192, 240, 384)
    seed: int = 0

    def __post_init__(self) -> None:
        configs.at_least(self, 1, "batch_size")
        configs.at_least(self, 0, "seed")
        if not self.edges or list(self.edges) != sorted({max(1, edge) for edge in self.edges}):
            raise UserError(f"edges: {list(self.edges)}; give numbers above 0 that rise")


class BucketedClips:
    """A deterministic, endless stream of (bucket edge, clip numbers)."""

    def __init__(self, lengths: Sequence[int], config: BucketConfig):
        if not lengths:
            raise UserError("there are no clips to train on")
        self.config = config
        which = np.searchsorted(np.asarray(config.edges), np.asarray(lengths))
        self._buckets = [np.flatnonzero(which == b) for b in range(len(config.edges))]
        self.left_out = int(np.sum(which == len(config.edges)))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        sizes = [-(-len(bucket) // config.batch_size) for bucket in self._buckets]
        self.batches_per_epoch = sum(sizes)
        if not self.batches_per_epoch:
            raise UserError(f"every clip is longer than {config.edges[-1]} mel frames")

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        """Returns batch `number` of the stream: the bucket's edge and `batch_size` clip numbers."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _make_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng((self.config.seed, epoch))
        size = self.config.batch_size
        batches = []
        for edge, bucket in zip(self.config.edges, self._buckets, strict=True):
            if len(bucket):
                # The last batch is filled up with the first clips, so that every batch is full.
                order = np.resize(rng.permutation(bucket), -(-len(bucket) // size) * size)
                batches += [(edge, order[i : i + size]) for i in range(0, len(order), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def clip_batches(
    clips: BucketedClips,
    collate: Callable[[int, np.ndarray, np.ndarray], dict[str, np.ndarray]],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
    """Returns a stage's `batches`: from rows seen to this host's part of each later batch.

    `collate(edge, clip numbers, rows)` makes the arrays, padded to the bucket's edge; `rows` are
    the numbers of the rows in the stream, from which anything random must be drawn.
    """
    size = clips.config.batch_size
    if size % process_count:
        raise UserError(f"batch_size {size} does not divide by the {process_count} hosts")
    part = size // process_count
    mine = slice(process_index * part, (process_index + 1) * part)

    def batches(rows_seen: int) -> Iterator[dict[str, np.ndarray]]:
        number = rows_seen // size
        while True:
            edge, chosen = clips[number]
            yield collate(edge, chosen[mine], number * size + np.arange(size)[mine])
            number += 1

    return batches
