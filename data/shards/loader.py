"""Batches for training: every rank and worker takes its rows of one global order; the only state is a count.

Global batch k takes positions kB to (k+1)B of the order, so the number of ranks and workers changes no batch. Where
pictures have several shapes, all of a global batch have one. Of several captions each epoch takes another.
"""

import logging
import signal
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.shards.dataset import OF_A_CAPTION, ShardDataset
from data.shards.health import LoaderHealth
from data.shards.order import BatchOrder, SampleOrder

logger = logging.getLogger(__name__)


def batches(
    dataset: ShardDataset,
    seed: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world_size: int,
    consumed: int = 0,
    workers: int = 0,
    window: int = 8,
    health: LoaderHealth | None = None,
) -> Iterator[dict[str, Any]]:
    """This rank's micro batches for ever.

    Row r of a global batch belongs to rank r // (global_batch / world_size); inside the rank, micro batch m takes
    its m-th consecutive rows.

    Args:
        consumed: samples of the global order that are done; the next global batch starts there.
        workers: reading processes; changes the speed and nothing else.
        health: counts the samples that had to be replaced, and stops the run when they are too many; by default
            one with its own defaults.

    Yields:
        The dataset's fields (tensors stacked to [b, ...], strings and dicts as lists), "key", "rows" (int64 [b],
        row numbers in the global batch) and "substituted" (list of (key, reason) of replaced samples).

    Raises:
        ValueError: for batch sizes that do not divide, or fewer samples than a global batch.
    """
    _check_batches(dataset, global_batch, micro_batch, rank, world_size, consumed)
    order = BatchOrder(SampleOrder(dataset.sizes, seed, window), dataset.bucket_of, global_batch)
    sampler = _MicroBatches(order, global_batch, micro_batch, rank, world_size, consumed)
    health = health if health is not None else LoaderHealth()
    return _read(_BatchReader(dataset, seed), sampler, workers, health)


def tell_captions(dataset: ShardDataset) -> None:
    """Log which captions a training takes of samples that have several."""
    if not dataset.num_several or not {"caption", *OF_A_CAPTION} & set(dataset.fields):
        return
    several = f"{dataset.num_several} of {len(dataset)} samples in {dataset.folder} have several captions"
    if dataset.takes_turns:
        logger.info("%s: each epoch takes another", several)
        return
    made = " and ".join(name for name in OF_A_CAPTION if name in dataset.fields)
    logger.warning(
        "%s, and their stored %s of the first alone: every epoch takes the first; a training that encodes captions "
        "itself (generator.cached_prompts false) takes another in each",
        several,
        made,
    )


_MicroBatch = tuple[list[int], list[int], list[int]]
"""Numbers of its samples, their rows in the global batch, and the epoch of each."""


class _MicroBatches(Sampler):
    """Yields (sample numbers, rows, epochs) of one rank's micro batches for ever."""

    def __init__(
        self, order: BatchOrder, global_batch: int, micro_batch: int, rank: int, world_size: int, consumed: int
    ) -> None:
        self._order = order
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._rank_rows = global_batch // world_size
        self._first_row = rank * self._rank_rows
        self._consumed = consumed

    def __iter__(self) -> Iterator[_MicroBatch]:
        for start in count(self._consumed, self._global_batch):
            samples, epochs = self._order.samples(start), self._order.epochs(start)
            for first in range(self._first_row, self._first_row + self._rank_rows, self._micro_batch):
                rows = list(range(first, first + self._micro_batch))
                yield samples[rows].tolist(), rows, epochs[rows].tolist()


class _BatchReader(Dataset):
    """What a worker runs: the "index" is a whole micro batch."""

    def __init__(self, dataset: ShardDataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __getitem__(self, micro_batch: _MicroBatch) -> dict[str, Any]:
        indices, rows, epochs = micro_batch
        return {**self._dataset.read_batch(indices, self._seed, epochs), "rows": torch.tensor(rows)}


def _read(reader: _BatchReader, sampler: _MicroBatches, workers: int, health: LoaderHealth) -> Iterator[dict[str, Any]]:
    loader = DataLoader(
        reader,
        batch_size=None,  # the sampler's items are batches already
        sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else the loader draws a seed from the global generator
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_ctrl_c_to_the_trainer,
    )
    for batch in loader:
        health.record(batch)
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_ctrl_c_to_the_trainer(worker: int) -> None:
    """A terminal sends Ctrl-C to workers too, whose batches the trainer needs to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_batches(
    dataset: ShardDataset, global_batch: int, micro_batch: int, rank: int, world_size: int, consumed: int
) -> None:
    if global_batch < 1 or micro_batch < 1 or global_batch % (world_size * micro_batch):
        raise ValueError(
            f"a global batch of {global_batch} does not divide into micro batches of {micro_batch} on {world_size} "
            "ranks; change run.global_batch or run.micro_batch"
        )
    if not 0 <= rank < world_size or consumed < 0:
        raise ValueError(
            f"rank {rank} of {world_size} after {consumed} samples: expected 0 <= rank < ranks, 0 <= samples"
        )
    if len(dataset) < global_batch:
        raise ValueError(
            f"{dataset.folder} holds {len(dataset)} samples, fewer than one global batch of {global_batch}: "
            "add images, or lower run.global_batch"
        )
