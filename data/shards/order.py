"""The order in which training sees samples: a pure function of (seed, epoch), without state.

Shards are shuffled; then samples are shuffled inside each window of consecutive shards, so that reads stay local.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

_CACHED_WINDOWS = 4


class SampleOrder:
    """An endless order over samples that are numbered shard after shard; each epoch holds each sample once.

    Args:
        sizes: number of samples of each shard.
        seed: a seed of 0 or more.
        window: number of shards among which samples are mixed.

    Raises:
        ValueError: for no samples, a negative seed, or a window below one.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
        if not sum(sizes):
            raise ValueError("no samples to put in order: the shards are empty")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected 0 or more")
        if window < 1:
            raise ValueError(f"data.window is {window}, expected at least 1 shard")
        self._sizes = np.asarray(sizes, np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._seed, self._window = seed, window
        self.num_samples = int(self._sizes.sum())
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def index(self, position: int) -> int:
        """The sample at a position 0, 1, 2, ... of the order, which runs on across epochs."""
        epoch, offset = divmod(position, self.num_samples)
        _, starts = self._epoch(epoch)
        number = int(np.searchsorted(starts, offset, side="right")) - 1
        return int(self._window_samples(epoch, number)[offset - int(starts[number])])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards of an epoch in their order [S], and the offset in the epoch at which each window starts."""
        if epoch not in self._epochs:
            shards = _permutation(len(self._sizes), (self._seed, epoch, 0))
            ends = np.cumsum(self._sizes[shards])
            starts = np.concatenate([[0], ends[self._window - 1 : -1 : self._window]])
            _remember(self._epochs, epoch, (shards, starts))
        return self._epochs[epoch]

    def _window_samples(self, epoch: int, number: int) -> np.ndarray:
        """The samples of one window in their order."""
        if (epoch, number) not in self._windows:
            shards = self._epoch(epoch)[0][number * self._window : (number + 1) * self._window]
            samples = np.concatenate([np.arange(self._sizes[s], dtype=np.int64) + self._firsts[s] for s in shards])
            # 1 + number: a seed sequence cannot tell trailing zeros from nothing, and 0 is the shards' own.
            mixed = samples[_permutation(len(samples), (self._seed, epoch, 1 + number))]
            _remember(self._windows, (epoch, number), mixed)
        return self._windows[epoch, number]


def _permutation(length: int, entropy: tuple[int, ...]) -> np.ndarray:
    # Raw bits of PCG64 are fixed for good, while numpy's own shuffles may change between its versions.
    bits = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(length)
    return np.argsort(bits, kind="stable")


def _remember(cache: OrderedDict, key: object, value: object) -> None:
    cache[key] = value
    if len(cache) > _CACHED_WINDOWS:
        cache.popitem(last=False)
