"""Captioned images to evaluate on: a folder of pictures with their captions, or shards that hold images."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.pictures.files import list_images
from data.pictures.images import centre_square, decode
from data.pictures.source import DamagedInput
from data.shards.dataset import ShardDataset
from models.pictures import from_picture

logger = logging.getLogger(__name__)


class CaptionedImage(NamedTuple):
    """An image [3, H, W] in [-1, 1] with its caption; `key` names it in tables."""

    key: str
    image: Tensor
    caption: str


def captioned_images(path: Path, resolution: int, limit: int | None = None) -> list[CaptionedImage]:
    """`each_captioned_image`, all in memory."""
    return list(each_captioned_image(path, resolution, limit))


def each_captioned_image(path: Path, resolution: int, limit: int | None = None) -> Iterator[CaptionedImage]:
    """Yield the first `limit` images of shards (folder with a manifest.json) or of a folder tree, in sorted order.

    Pictures of a folder are cropped at the centre and resized to `resolution`. Those that are damaged or without a
    caption are left out, with a warning.

    Raises ValueError if nothing is left, or if the shards have another resolution.
    """
    images = (_of_shards if (path / "manifest.json").is_file() else _of_folder)(path, resolution, limit)
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


def _of_folder(path: Path, resolution: int, limit: int | None) -> Iterator[CaptionedImage]:
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
        square, _ = centre_square(picture, resolution)
        count += 1
        yield CaptionedImage(source, from_picture(square).contiguous(), caption)


def stacked(samples: Sequence[CaptionedImage]) -> Tensor:
    """Images [B, 3, H, W] of the samples."""
    return torch.stack([sample.image for sample in samples])
