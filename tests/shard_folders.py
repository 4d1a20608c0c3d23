"""Makes small real folders of shards for tests, through the same stage code as the commands."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.pictures import images
from data.shards.sample import SampleInfo, key_of
from data.shards.shard import Drop, Origin, Sample, npy_bytes
from data.shards.stage import Unit, divide, run_stage

LATENT_SHAPE = (4, 8, 8)


def latent_of(number: int) -> np.ndarray:
    """The latent of sample `number`: float16, distinct, finite."""
    return np.random.default_rng(number).standard_normal(LATENT_SHAPE).astype(np.float16)


def sources(count: int) -> list[str]:
    """Sorted source paths of `count` samples."""
    return [f"pictures/{number:05d}.png" for number in range(count)]


def make_sample(source: str) -> Sample:
    """A sample with a latent and a caption that follow from its source."""
    number = int(Path(source).stem)
    info = SampleInfo(
        key=key_of(source),
        caption=f"picture {number}",
        caption_raw=f"picture {number}\n",
        original_size=(80, 64),
        crop=(8, 0, 64, 64),
        content_hash=f"{number:064x}",
        source=source,
    )
    return Sample(info.key, {"json": info.to_json(), "latent.npy": npy_bytes(latent_of(number))})


def origin(**config: object) -> Origin:
    """What made these shards."""
    properties = {"resolution": 64, "vae_fingerprint": "vae", "latent_fingerprint": "vae, 64 px"}
    return Origin("encode", {"option": 1, **config}, {}, properties)


def make_latents(folder: Path, count: int, unit_size: int) -> Path:
    """A finished folder of latents; returns it."""

    def process(unit: Unit) -> Iterator[Sample | Drop]:
        return (make_sample(source) for source in unit.items)

    names: Sequence[str] = sources(count)
    run_stage(divide(names, names, unit_size), folder, process, origin(), max_damage=0)
    return folder


PAIR_SIDE = 64
PAIR_CHECKS = {"image_similarity": 0.9, "source_similarity": 0.25, "target_similarity": 0.3125, "direction": 0.21}


def pair_pixels(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and edited picture [H, W, 3] of pair `number`: random, distinct."""
    source, edited = np.random.default_rng(number).integers(0, 256, (2, PAIR_SIDE, PAIR_SIDE, 3), np.uint8)
    return source, edited


def make_pair(number: int) -> Sample:
    """A sample as data.edit_pairs writes it, two of each caption; odd ones are JPEG."""
    info = SampleInfo(
        key=f"caption-{number // 2}-{number % 2:03d}",
        caption=f"make shape {number} blue",
        caption_raw=f"make shape {number} blue",
        original_size=(PAIR_SIDE, PAIR_SIDE),
        crop=(0, 0, PAIR_SIDE, PAIR_SIDE),
        content_hash=f"{number:064x}",
        source=f"caption-{number // 2}",
        extra={
            "source_caption": f"a red shape {number}",
            "target_caption": f"a blue shape {number}",
            "seed": number,
            "self_share": 0.4,
            "guidance": 7.5,
        },
        checks=PAIR_CHECKS,
    )
    members = {"json": info.to_json()}
    for name, pixels in zip(("source.", ""), pair_pixels(number)):
        suffix, content = images.encode(Image.fromarray(pixels), lossless=number % 2 == 0)
        members[name + suffix] = content
    return Sample(info.key, members, info.checks)


def make_pairs(
    folder: Path, count: int, unit_size: int, make: Callable[[int], Sample] = make_pair, dropped: int = 0
) -> Path:
    """A finished folder of edit pairs, and of captions that gave none; returns it."""

    def process(unit: Unit) -> Iterator[Sample | Drop]:
        for name in unit.items:
            number = int(name)
            yield make(number) if number < count else Drop(f"caption-{number}", "no pair", "policy")

    made_by = Origin("edit_pairs", {}, {}, {"resolution": PAIR_SIDE, "preprocessing": "generated"})
    names = [f"{number:03d}" for number in range(count + dropped)]
    run_stage(divide(names, names, unit_size), folder, process, made_by, max_damage=0)
    return folder
