"""The random sample of an inspection: its captions measured, its arrays checked, its first pictures for the page."""

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from data.captioning.tokens import TokenLimits
from data.inspection.captions import CaptionStatistics, characters_read
from data.inspection.findings import Findings, Kind
from data.inspection.folder import Contents, Place
from data.inspection.shard import BAD_JSON, read_info
from data.pictures import images
from data.pictures.buckets import size_name
from data.shards.dataset import ARRAYS, UnreadableSample, parse_array
from data.shards.sample import IMAGES, SOURCE_IMAGES, SampleInfo
from data.shards.shard import layout_at

NUM_CARDS = 60
"""Samples on the contact sheet."""

_THUMBNAIL = 192
_PICTURES = (*IMAGES, *SOURCE_IMAGES)

BAD_ARRAY = Kind(
    "an array is not what the loader reads", "make the shards again together into another folder with data.encode"
)
BAD_PICTURE = Kind(
    "a picture is not what the loader reads",
    "make the shards again together into another folder with data.caption, pairs with data.edit_pairs",
)


@dataclass(frozen=True)
class Pair:
    """Words of a card about a pair, beside the edited picture and the instruction.

    Args:
        picture: data URI of the source picture, or None where the shards hold no pictures.
        captions: texts of the source picture and of the edited one.
        settings: options with which the pair was made, by name.
        scores: figures of the pair, by name.
    """

    picture: str | None
    captions: tuple[str, str]
    settings: Mapping[str, str]
    scores: Mapping[str, str]


@dataclass(frozen=True)
class Card:
    """A sample on the contact sheet.

    Args:
        info: the sample's KEY.json.
        picture: data URI, or None where the shards hold no pictures.
        read: the part of the caption that all text encoders read; all of it without a backbone.
        cut: the rest.
        pair: the other half of a pair, whose caption is its instruction; None for a single picture.
    """

    info: SampleInfo
    picture: str | None
    read: str
    cut: str
    pair: Pair | None


@dataclass
class Sampled:
    """Findings of the random sample.

    Args:
        captions: lengths of the captions.
        cards: the contact sheet.
        latent_mean, latent_std: mean and standard deviation of all elements of the sample's latents; None without any.
    """

    captions: CaptionStatistics
    cards: list[Card] = field(default_factory=list)
    latent_mean: float | None = None
    latent_std: float | None = None


def read_sample(folder: Path, contents: Contents, limits: TokenLimits | None, findings: Findings) -> Sampled:
    """Reads the random sample and adds what is wrong in it to `findings`; what is in no whole tar is left out.

    Args:
        limits: tokenizers that measure the captions; None takes the counts that the shards hold.
    """
    sampled = Sampled(CaptionStatistics(limits))
    cards: dict[int, Card] = {}
    sums = [0.0, 0.0, 0.0]
    pictured = {place.digest for place in contents.sample[:NUM_CARDS]}
    in_order = sorted(contents.sample, key=lambda place: (place.unit, min(place.spans.values(), default=(0, 0))))
    for place in tqdm(in_order, unit="sample", desc="read"):
        wanted = {*contents.origin["arrays"], "json", *(_PICTURES if place.digest in pictured else ())}
        members = _read_members(folder, place, wanted)
        if "json" not in members:
            continue
        try:
            info = read_info(bytes(members["json"]), place.key)
        except ValueError as error:
            findings.add(BAD_JSON, f"{place.unit}: {place.key}: {error}")
            continue
        sampled.captions.add(info)
        _check_arrays(place, members, contents, findings, sums)
        if place.digest in pictured:
            cards[place.digest] = _card(place, info, members, contents.origin["properties"], limits, findings)
    sampled.cards = [cards[place.digest] for place in contents.sample[:NUM_CARDS] if place.digest in cards]
    if sums[2]:
        sampled.latent_mean = sums[0] / sums[2]
        sampled.latent_std = math.sqrt(max(0.0, sums[1] / sums[2] - sampled.latent_mean**2))
    return sampled


def _read_members(folder: Path, place: Place, wanted: set[str]) -> dict[str, memoryview]:
    """The members of a sample that are there in full."""
    members = {}
    try:
        with (folder / f"{place.unit}.tar").open("rb") as tar:
            for suffix in wanted & set(place.spans):
                offset, size = place.spans[suffix]
                content = bytearray(os.pread(tar.fileno(), size, offset))
                if len(content) == size:
                    members[suffix] = memoryview(content)
    except OSError:
        return {}
    return members


def _check_arrays(
    place: Place, members: dict[str, memoryview], contents: Contents, findings: Findings, sums: list[float]
) -> None:
    """Arrays as the loader would take them; adds those of the latent to `sums` (sum, of squares, number)."""
    for suffix, layout in contents.origin["arrays"].items():
        if suffix not in members:
            continue
        expected = layout_at(layout, place.size) or {"shape": []}
        try:
            array = parse_array(members[suffix], tuple(expected["shape"]))
        except UnreadableSample as error:
            findings.add(BAD_ARRAY, f"{place.unit}: {place.key}.{suffix}: {error}")
            continue
        if suffix == "latent.npy":
            values = array.to(torch.float64)
            for index, value in enumerate((values.sum().item(), values.square().sum().item(), values.numel())):
                sums[index] += value


def _card(
    place: Place,
    info: SampleInfo,
    members: dict[str, memoryview],
    properties: dict[str, Any],
    limits: TokenLimits | None,
    findings: Findings,
) -> Card:
    picture, source = (_picture(place, suffixes, members, properties, findings) for suffixes in (IMAGES, SOURCE_IMAGES))
    read = len(info.caption) if limits is None else characters_read(info.caption, limits)
    is_pair = any(suffix in place.spans for suffix in (ARRAYS["source"], *SOURCE_IMAGES))
    return Card(info, picture, info.caption[:read], info.caption[read:], _pair(info, source) if is_pair else None)


def _picture(
    place: Place,
    suffixes: Sequence[str],
    members: dict[str, memoryview],
    properties: dict[str, Any],
    findings: Findings,
) -> str | None:
    """The member with one of the suffixes as a data URI, None where there is none that can be read."""
    uri = None
    for suffix in set(suffixes) & set(members):
        try:
            picture = images.decode(bytes(members[suffix]))
        except images.DamagedImage as error:
            findings.add(BAD_PICTURE, f"{place.unit}: {place.key}.{suffix}: {error}")
            continue
        side = properties.get("resolution", 0)
        expected = place.size or (side, side)
        if picture.size != expected:
            sizes = f"{size_name(picture.size)} instead of {size_name(expected)} px"
            findings.add(BAD_PICTURE, f"{place.unit}: {place.key}.{suffix} is {sizes}")
        uri = _thumbnail(picture)
    return uri


def _pair(info: SampleInfo, picture: str | None) -> Pair:
    """What KEY.json says of a pair."""
    extra = info.extra if isinstance(info.extra, dict) else {}
    captions = (str(extra.get("source_caption", "")), str(extra.get("target_caption", "")))
    return Pair(picture, captions, _figures(extra), _figures(info.checks))


def _figures(found: Mapping[str, Any]) -> dict[str, str]:
    """The numbers among some entries, in three digits where they are not whole, by name."""
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {
        name.replace("_", " "): str(value) if isinstance(value, int) else f"{value:.3g}"
        for name, value in numbers.items()
    }


def _thumbnail(picture: Image.Image) -> str:
    """A small JPEG as a data URI."""
    small = picture.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
