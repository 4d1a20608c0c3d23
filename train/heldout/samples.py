"""The held-out samples of a run: the same ones each time, in batches that are divided among the ranks."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data.shards.dataset import ShardDataset
from models.fingerprints import named, same_weights
from train.heldout.probe import Pairs, Probe, probe_of, read_pairs
from train.run.config import FitConfig
from train.task import Batch

log = logging.getLogger(__name__)

_NETWORKS = ("vae_fingerprint", "text_fingerprint", "unet_fingerprint", "clip_fingerprint")


class HeldOutSamples:
    """A fixed choice of held-out samples: those of the probe's file, then others evenly spaced over the shards.

    Args:
        config: Config of the run, which names the shards.
        training: The samples of the training.
        fields: Fields that the task reads.
        probed: Whether edits are tried on them. A batch's captions are then the descriptions before the edits.

    Attributes:
        numbers: Numbers of the samples in the dataset, in order.

    Raises:
        ValueError: other networks have made the held-out shards than those of the training, or the probe's file has
            keys that they lack or more than are looked at.
    """

    def __init__(self, config: FitConfig, training: ShardDataset, fields: Sequence[str], probed: bool) -> None:
        assert config.data.validation is not None
        self.seed, self.probed = config.run.seed, probed
        self.dataset = ShardDataset(config.data.validation, tuple(dict.fromkeys((*fields, "caption", "info"))))
        _check_alike(self.dataset, training)
        if self.dataset.folder.resolve() == training.folder.resolve():
            log.warning("data.validation is %s, which the run is trained on: nothing is held out", self.dataset.folder)
        self.pairs: Pairs = read_pairs(Path(config.data.probe)) if config.data.probe else {}
        self.numbers = _chosen(self.dataset, self.pairs, config.log.validation_samples)

    def batches(self, micro_batch: int, rank: int, world_size: int) -> Iterator[tuple[Batch, bool]]:
        """Batches of one shape each, of at most `micro_batch` samples, and whether they count.

        Every rank gets as many, as all have to make as many passes where the weights lie in pieces; one that has no
        batch left gets the first one again, which does not count.
        """
        size = min(micro_batch, -(-len(self.numbers) // world_size))
        parts = [part[i : i + size] for part in self._of_one_shape() for i in range(0, len(part), size)]
        for first in range(0, len(parts), world_size):
            mine = first + rank
            yield self._batch(self.dataset, parts[mine if mine < len(parts) else 0]), mine < len(parts)

    def pictured(self, count: int) -> Batch:
        """The first samples of one shape, at most `count`, with their pictures where the shards hold them."""
        dataset = self.dataset
        if "image" in dataset.available:
            dataset = ShardDataset(dataset.folder, tuple(dict.fromkeys((*dataset.fields, "image"))))
        return self._batch(dataset, self._of_one_shape()[0][:count])

    def _of_one_shape(self) -> list[list[int]]:
        """The samples of each shape, those of the first one first."""
        shapes = dict.fromkeys(int(self.dataset.bucket_of[number]) for number in self.numbers)
        return [[n for n in self.numbers if self.dataset.bucket_of[n] == shape] for shape in shapes]

    def _batch(self, dataset: ShardDataset, numbers: list[int]) -> Batch:
        batch: Batch = dataset.read_batch(numbers)
        if batch["substituted"]:
            key, reason = batch["substituted"][0]
            raise ValueError(f"sample {key} of data.validation {dataset.folder} cannot be read ({reason}): mend it")
        size = dataset.buckets[dataset.bucket_of[numbers[0]]]
        probes = [probe_of(info, size, self.pairs, self.seed) if self.probed else None for info in batch["info"]]
        captions = [
            probe.caption if probe else caption for probe, caption in zip(probes, batch["caption"], strict=True)
        ]
        return {**batch, "caption": captions, "probe": probes, "rows": torch.arange(len(numbers))}


def words_of(batch: Batch) -> list[str]:
    """What stands below each row of a picture of held-out samples: the caption, and the target of the edit."""
    probes: list[Probe | None] = batch["probe"]
    return [f"{c} -> {p.target}" if p else c for c, p in zip(batch["caption"], probes, strict=True)]


def _chosen(dataset: ShardDataset, pairs: Pairs, count: int) -> list[int]:
    by_key = {dataset.key(number): number for number in range(len(dataset))} if pairs else {}
    if missing := [key for key in pairs if key not in by_key]:
        raise ValueError(f"data.probe has the key {missing[0]}, which no sample of {dataset.folder} has; take it out")
    if len(pairs) > count:
        raise ValueError(
            f"data.probe has {len(pairs)} edits, more than the {count} samples of log.validation_samples: raise that"
        )
    first = [by_key[key] for key in pairs]
    others = np.setdiff1d(np.arange(len(dataset)), first)
    wanted = min(count - len(first), len(others))
    return [*first, *others[np.arange(wanted) * len(others) // max(wanted, 1)].tolist()]


def _check_alike(heldout: ShardDataset, training: ShardDataset) -> None:
    """Raises ValueError where held-out shards were made otherwise than those of the training."""
    for name in _NETWORKS:
        theirs, ours = getattr(heldout, name), getattr(training, name)
        if theirs != ours and not same_weights(theirs, ours):
            raise ValueError(
                f"data.validation {heldout.folder} and data.shards {training.folder} were made by other networks "
                f"({named(theirs)}, {named(ours)}): make both with the same options of data.encode"
            )
    for name in ("resolution", "pivot_steps"):
        theirs, ours = getattr(heldout, name), getattr(training, name)
        if theirs != ours:
            raise ValueError(
                f"data.validation {heldout.folder} has the {name} {theirs} and data.shards {training.folder} {ours}: "
                "make both with the same options"
            )
