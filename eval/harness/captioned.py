"""Captioned images to evaluate on: a folder of pictures with their captions, or shards that hold images."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.pictures.buckets import nearest_bucket
from data.pictures.files import list_images
from data.pictures.images import decode
from data.pictures.source import DamagedInput
from data.shards.dataset import ShardDataset
from eval.harness.options import Shapes
from models.pictures import from_picture
from models.upright import fitted

logger = logging.getLogger(__name__)


class CaptionedImage(NamedTuple):
    """An image [3, H, W] in [-1, 1] with its caption; `key` names it in tables."""

    key: str
    image: Tensor
    caption: str


def captioned_images(path: Path, resolution: int, limit: int | None = None) -> list[CaptionedImage]:
    """`each_captioned_image` as squares, all in memory.

    Raises:
        ValueError: shards that hold other shapes too.
    """
    images = list(each_captioned_image(path, resolution, limit))
    for sample in images:
        height, width = sample.image.shape[-2:]
        if height != width:
            raise ValueError(
                f"{path} holds {sample.key} of {width}x{height} pixels, expected squares: make its shards with "
                "--shapes square, or give the folder of pictures"
            )
    return images


def each_captioned_image(
    path: Path, resolution: int, limit: int | None = None, shapes: Shapes = "square"
) -> Iterator[CaptionedImage]:
    """Yield the first `limit` images of shards (folder with a manifest.json) or of a folder tree, in sorted order.

    Those of shards are as they are. Pictures of a folder are cropped at the centre and resized to a square of
    `resolution`, or to the bucket nearest to their shape. Those that are damaged or without a caption are left out,
    with a warning.

    Raises ValueError if nothing is left, or if the shards have another resolution.
    """
    if (path / "manifest.json").is_file():
        images = _of_shards(path, resolution, limit)
    else:
        images = _of_folder(path, resolution, limit, shapes)
    empty = True
    for image in images:
        empty = False
        yield image
    if empty:
        raise ValueError(f"{path} holds no readable image with a caption (.txt beside it, or a metadata.jsonl)")


def _of_shards(path: Path, resolution: int, limit: int | None) -> Iterator[CaptionedImage]:
    dataset = ShardDataset(path, fields=("image", "caption"))
    if dataset.resolution != resolution:
        raise ValueError(f"the images of {path} have {dataset.resolution} px; the generator works at {resolution} px")
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        sample = dataset[index]
        yield CaptionedImage(sample["key"], sample["image"], sample["caption"])


def _of_folder(path: Path, resolution: int, limit: int | None, shapes: Shapes) -> Iterator[CaptionedImage]:
    folder = list_images(path)
    count = 0
    for number, source in enumerate(folder.names):
        if count == limit:
            return
        try:
            found = folder.read(number)
            caption = " ".join((found.caption or "").split())
            if not caption:
                logger.warning("%s is left out: no caption", source)
                continue
            picture = decode(found.content)
        except DamagedInput as error:
            logger.warning("%s is left out: %s", source, error)
            continue
        size = nearest_bucket(picture.size, resolution) if shapes == "buckets" else (resolution, resolution)
        count += 1
        yield CaptionedImage(source, from_picture(fitted(picture, size)[0]).contiguous(), caption)


def batches_of_one_shape(samples: Iterable[CaptionedImage], size: int) -> Iterator[list[CaptionedImage]]:
    """Yield up to `size` samples of one shape at a time, each shape's in their order."""
    waiting: dict[torch.Size, list[CaptionedImage]] = {}
    for sample in samples:
        alike = waiting.setdefault(sample.image.shape, [])
        alike.append(sample)
        if len(alike) == size:
            yield waiting.pop(sample.image.shape)
    yield from waiting.values()


def stacked(samples: Sequence[CaptionedImage]) -> Tensor:
    """Images [B, 3, H, W] of samples of one shape."""
    return torch.stack([sample.image for sample in samples])
