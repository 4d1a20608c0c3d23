"""Work of data.caption: pictures are read, cropped, captioned and written as shards, one unit after the other."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.maker import CaptionMaker, Rejected
from data.captioning.renewal import renew_tokenizers
from data.jobs.errors import ShardError
from data.jobs.prefetch import in_order
from data.jobs.sharing import Ranks
from data.pictures import images
from data.pictures.buckets import bucket_sizes
from data.pictures.files import open_source
from data.pictures.inventory import duplicates, take_inventory
from data.pictures.source import DamagedInput, Source
from data.shards.sample import OtherCaption, SampleInfo, key_of
from data.shards.shard import Drop, Origin, Sample
from data.shards.stage import Unit, divide, library_versions, run_stage
from models.upright import fitted

_MAX_AHEAD = 64


def caption_folder(source: str | Path, out: str | Path, config: CaptionConfig) -> dict[str, Any]:
    """Runs the stage on a folder of pictures or tars, or a list; returns the manifest of `out`.

    Raises:
        data.jobs.errors.ShardError: see `data.pictures.files.open_source` and `data.shards.stage.run_stage`.
        data.captioning.interface.CaptionerError: when the captioner cannot go on.
    """
    out = Path(out)
    if out.exists() and Path(source).exists() and os.path.samefile(source, out):  # noqa: PTH121 (one is a str)
        raise ShardError(f"INPUT and OUT are the same folder, {out}; give another OUT folder")
    maker = CaptionMaker(config)
    pictures = open_source(source, config.reads_texts, config.policy)
    origin = _origin(pictures, maker, config)  # before the inventory: a model that is not there is told at once
    if config.backbone is not None:
        renew_tokenizers(out, origin, maker.token_limits())
    ranks = Ranks.of_launch()
    with ThreadPoolExecutor(config.threads) as pool:
        hashes = take_inventory(pictures, out, config.drop_duplicates, ranks, pool)
        contents = None if hashes is None else [row.tobytes() for row in hashes]
        numbers = range(len(pictures.names))
        units = divide(pictures.names, numbers, config.unit_size, contents, partial(pictures.texts_digest, pool=pool))
        repeats = {} if hashes is None else duplicates(hashes)
        prepare = partial(_prepare, pictures, repeats, config)

        def process(unit: Unit) -> Iterator[Sample | Drop]:
            return _outcomes(unit.items, prepare, maker, pool, sized=config.shapes == "buckets")

        return run_stage(units, out, process, origin, config.max_damage, ranks, not_taken=pictures.not_taken)


def _origin(pictures: Source, maker: CaptionMaker, config: CaptionConfig) -> Origin:
    return Origin(
        stage="caption",
        config={
            **maker.identity(),
            "resolution": config.resolution,
            **_shapes(config),
            "drop_duplicates": config.drop_duplicates,
            "unit_size": config.unit_size,
            **(config.policy.identity() if config.reads_texts else {}),
            **pictures.digests,
        },
        versions=library_versions("pillow", "webdataset", *maker.packages),
        properties=_properties(config),
    )


def _shapes(config: CaptionConfig) -> dict[str, Any]:
    """What the options say of shapes, as folders of squares have always said it."""
    if config.shapes == "square":
        return {"min_size": config.min_size or config.resolution}
    return {"shapes": config.shapes, "min_size": config.min_size}


def _properties(config: CaptionConfig) -> dict[str, Any]:
    if config.shapes == "square":
        return {"resolution": config.resolution, "preprocessing": "centre square, Lanczos"}
    buckets = bucket_sizes(config.resolution)
    return {"resolution": config.resolution, "preprocessing": "buckets, Lanczos", "buckets": [list(b) for b in buckets]}


@dataclass(frozen=True)
class _Prepared:
    """A picture that is ready for its caption.

    Args:
        picture: the picture at the size of training.
        suffix: ending of the stored file; `stored`: its bytes.
        existing: the caption that is there, or None.
        others: the captions that are there after the first.
        known: all of its KEY.json but captions and checks.
    """

    picture: Image.Image
    suffix: str
    stored: bytes
    existing: str | None
    others: Sequence[str]
    known: dict[str, Any]


def _prepare(pictures: Source, repeats: dict[int, int], config: CaptionConfig, number: int) -> _Prepared | Drop:
    """Reads, decodes, crops and stores one picture; or why there is none. What is damaged is never a duplicate."""
    name = pictures.names[number]
    try:
        found = pictures.read(number)
        picture = images.read_picture(found.content)
    except DamagedInput as error:
        return Drop(name, error.reason, "damage", error.detail)
    if not config.takes(picture.image.size):
        return Drop(name, "too small", "policy", "x".join(map(str, picture.image.size)))
    if number in repeats:
        return Drop(name, "duplicate", "policy", f"of {pictures.names[repeats[number]]}")
    cropped, crop = fitted(picture.image, config.target(picture.image.size))
    if cropped is picture.image and picture.suffix:
        suffix, stored = picture.suffix, found.content
    else:
        suffix, stored = images.encode(cropped, lossless=cropped is picture.image)
    known = {
        "key": key_of(name),
        "original_size": picture.image.size,
        "crop": crop,
        "content_hash": hashlib.sha256(found.content).hexdigest(),
        "source": name,
        "extra": found.columns,
    }
    return _Prepared(cropped, suffix, stored, found.caption, found.other_captions, known)


def _outcomes(
    numbers: Iterable[int],
    prepare: Callable[[int], _Prepared | Drop],
    maker: CaptionMaker,
    pool: Executor,
    sized: bool,
) -> Iterator[Sample | Drop]:
    """The outcomes of one unit in its order. While the captioner works on a batch, threads prepare the next."""
    batch = maker.batch
    waiting: list[_Prepared | Drop] = []
    num_ready = 0
    for item in in_order(pool, prepare, numbers, ahead=min(batch, _MAX_AHEAD)):
        waiting.append(item)
        num_ready += isinstance(item, _Prepared)
        if num_ready == batch:
            yield from _captioned(waiting, maker, sized)
            waiting, num_ready = [], 0
    yield from _captioned(waiting, maker, sized)


def _captioned(items: Sequence[_Prepared | Drop], maker: CaptionMaker, sized: bool) -> Iterator[Sample | Drop]:
    """Gives prepared pictures their captions."""
    ready = [item for item in items if isinstance(item, _Prepared)]
    asked = ([item.picture for item in ready], [item.existing for item in ready], [item.others for item in ready])
    captions = iter(maker.captions(*asked) if ready else [])
    for item in items:
        if isinstance(item, Drop):
            yield item
            continue
        caption = next(captions)
        if isinstance(caption, Rejected):
            reason = caption.reason if "caption" in caption.reason else f"caption: {caption.reason}"
            yield Drop(item.known["source"], reason, "policy", caption.detail)
            continue
        others = tuple(OtherCaption(other.text, other.raw, other.checks) for other in caption.others)
        info = SampleInfo(
            **item.known, caption=caption.text, caption_raw=caption.raw, checks=caption.checks, other_captions=others
        )
        members = {"json": info.to_json(), item.suffix: item.stored}
        more = tuple(other.checks for other in others)
        yield Sample(info.key, members, caption.checks, item.picture.size if sized else None, more)
