"""Makes small real folders of shards for tests, through the same stage code as the commands."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.sample import SampleInfo, key_of
from data.shards import Drop, Origin, Sample, npy_bytes
from data.stage import Unit, divide, run_stage

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
