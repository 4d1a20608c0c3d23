"""The order in which training sees samples: a pure function of (seed, epoch), without state.

Shards are shuffled; then samples are shuffled inside each window of consecutive shards, so that reads stay local.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

_CACHED_WINDOWS = 4
_CACHED_EPOCHS = 2


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

    def epoch(self, number: int) -> np.ndarray:
        """All samples of an epoch in their order, int64 [N]."""
        _, starts = self._epoch(number)
        return np.concatenate([self._window_samples(number, window) for window in range(len(starts))])

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


class BatchOrder:
    """An endless order of batches whose samples are of one bucket; over all epochs each sample comes as often.

    The samples of a bucket follow each other as in `SampleOrder`, and make a batch whenever there are enough of them;
    what is left at an epoch's end is the beginning of the bucket's next batch. A batch stands where its last sample
    does. With one bucket these are the batches of `SampleOrder` itself. The only state is the number of samples before.

    Args:
        order: order of the samples.
        bucket_of: number of each sample's bucket, [N].
        batch: samples of a batch.
    """

    def __init__(self, order: SampleOrder, bucket_of: np.ndarray, batch: int) -> None:
        self._order, self._bucket_of, self._batch = order, bucket_of, batch
        self._counts = np.bincount(bucket_of)
        # A bucket's batch may span as many epochs; with what they have been once, none is permuted again.
        self._spans = ((batch - 1) // self._counts + 2).tolist()
        self._streams: list[dict[int, np.ndarray]] = [{} for _ in self._counts]
        self._batches: dict[int, np.ndarray] = {}

    def samples(self, start: int) -> np.ndarray:
        """The samples of the batch after `start` samples, int64 [batch].

        Raises:
            ValueError: several buckets, and `start` is no whole number of batches.
        """
        if len(self._counts) == 1:
            return np.array([self._order.index(start + row) for row in range(self._batch)])
        bucket, turn = self._bucket_and_turn(start)
        return self._bucket_samples(bucket, turn * self._batch)

    def epochs(self, start: int) -> np.ndarray:
        """The epoch of each sample of the batch after `start` samples, int64 [batch].

        It is how often the sample came before; samples of a rare bucket wait for their batch beyond their epoch's end.

        Raises:
            ValueError: as `samples`.
        """
        if len(self._counts) == 1:
            return (start + np.arange(self._batch)) // self._order.num_samples
        bucket, turn = self._bucket_and_turn(start)
        return (turn * self._batch + np.arange(self._batch)) // self._counts[bucket]

    def _bucket_and_turn(self, start: int) -> tuple[int, int]:
        """The bucket of the batch after `start` samples, and its number among the bucket's batches."""
        number, rest = divmod(start, self._batch)
        if rest:
            raise ValueError(
                f"{start} samples are no whole number of batches of {self._batch}: with pictures of several shapes "
                "run.global_batch stays what the run began with"
            )
        epoch = self._epoch_of(number)
        bucket, turn = self._batches_of(epoch)[number - self._batches_before(epoch)]
        return int(bucket), int(turn)

    def _batches_before(self, epoch: int) -> int:
        """Number of batches that end before an epoch."""
        return int((epoch * self._counts // self._batch).sum())

    def _epoch_of(self, number: int) -> int:
        """The epoch in which a batch ends."""
        epoch = number * self._batch // self._order.num_samples
        while self._batches_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _batches_of(self, epoch: int) -> np.ndarray:
        """The bucket of each batch that ends in an epoch, and its number among the bucket's batches, int64 [n, 2]."""
        return self._batches[epoch] if epoch in self._batches else self._permuted(epoch)[0]

    def _bucket_samples(self, bucket: int, start: int) -> np.ndarray:
        """A batch of a bucket's samples from a position of its endless order on."""
        count, parts, missing = int(self._counts[bucket]), [], self._batch
        epoch, offset = divmod(start, count)
        while missing:
            known = self._streams[bucket]
            stream = known[epoch] if epoch in known else self._permuted(epoch)[1][bucket]
            parts.append(stream[offset : offset + missing])
            missing, epoch, offset = missing - len(parts[-1]), epoch + 1, 0
        return np.concatenate(parts)

    def _permuted(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The batches that end in an epoch (`_batches_of`), and the samples of each bucket in its order."""
        samples = self._order.epoch(epoch)
        buckets = self._bucket_of[samples]
        ends, streams = [], []
        for bucket, count in enumerate(self._counts.tolist()):
            places = np.flatnonzero(buckets == bucket)
            turns = np.arange(epoch * count // self._batch, (epoch + 1) * count // self._batch)
            last = (turns + 1) * self._batch - 1 - epoch * count  # of each batch, in the epoch's stream
            ends.append(np.stack([places[last], np.full_like(turns, bucket), turns], 1))
            streams.append(samples[places])
            _keep_latest(self._streams[bucket], epoch, streams[-1], self._spans[bucket])
        together = np.concatenate(ends)
        batches = together[np.argsort(together[:, 0])][:, 1:]
        _keep_latest(self._batches, epoch, batches, _CACHED_EPOCHS)
        return batches, streams


def caption_number(seed: int, epoch: int, key: str, count: int) -> int:
    """Which of the `count` captions of the sample called `key` comes in an epoch.

    Each comes once in `count` epochs, in an order that is drawn anew for each such round.
    """
    turn, place = divmod(epoch, count)
    name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return int(_permutation(count, (seed, turn, name))[place])


def _permutation(length: int, entropy: tuple[int, ...]) -> np.ndarray:
    # Raw bits of PCG64 are fixed for good, while numpy's own shuffles may change between its versions.
    bits = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(length)
    return np.argsort(bits, kind="stable")


def _remember(cache: OrderedDict, key: object, value: object) -> None:
    cache[key] = value
    if len(cache) > _CACHED_WINDOWS:
        cache.popitem(last=False)


def _keep_latest(cache: dict[int, np.ndarray], epoch: int, value: np.ndarray, most: int) -> None:
    """Remember a value of an epoch among those of the latest epochs, over which one long past is not kept."""
    cache[epoch] = value
    if len(cache) > most:
        del cache[min(cache)]
