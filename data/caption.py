"""Stage images -> captioned shards: a folder of pictures with captions becomes KEY.json and KEY.png or KEY.jpg.

    python -m data.caption INPUT OUT --engine existing --resolution 512

Run the same command again after a kill, and it goes on where it was.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data import images
from data.captioners import ImageFolder, existing_caption, extra_columns, list_images
from data.command import run_command
from data.sample import SampleInfo, key_of
from data.shards import Drop, Origin, Sample
from data.stage import Unit, divide, library_versions, run_stage


@dataclass(frozen=True)
class CaptionConfig:
    """Options of the stage.

    Args:
        engine: where captions come from; "existing" takes those that are there: `text` (or `caption`) in
            metadata.jsonl, else the .txt file beside the picture.
        resolution: side in pixels of the centre square that is kept.
        min_size: pictures whose shorter side is below this many pixels are dropped as "too small"; by default the
            resolution, so that nothing is enlarged.
        max_damage: share of damaged files over which the stage stops.
        unit_size: pictures a shard.
    """

    engine: Literal["existing"] = "existing"
    resolution: int = 512
    min_size: int | None = None
    max_damage: float = 0.05
    unit_size: int = 256

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution % 8:
            raise ValueError(f"--resolution is {self.resolution}, expected a multiple of 8 (what VAEs divide by)")
        if self.min_size is not None and self.min_size < 1:
            raise ValueError(f"--min-size is {self.min_size}, expected at least 1 pixel")


def caption_folder(source: str | Path, out: str | Path, config: CaptionConfig) -> dict[str, Any]:
    """Runs the stage on the folder `source`; returns the manifest of `out`.

    Raises:
        data.shards.ShardError: see `data.stage.run_stage` and `data.captioners.list_images`.
    """
    folder = list_images(source)
    min_size = config.min_size if config.min_size is not None else config.resolution
    origin = Origin(
        stage="caption",
        config={
            "engine": config.engine,
            "resolution": config.resolution,
            "min_size": min_size,
            "unit_size": config.unit_size,
            "metadata.jsonl": folder.metadata_digest,
        },
        versions=library_versions("pillow", "webdataset"),
        properties={"resolution": config.resolution, "preprocessing": "centre square, Lanczos"},
    )
    units = divide(folder.sources, folder.sources, config.unit_size)

    def process(unit: Unit) -> Iterator[Sample | Drop]:
        return (_make_sample(folder, path, config.resolution, min_size) for path in unit.items)

    return run_stage(units, Path(out), process, origin, config.max_damage)


def _make_sample(folder: ImageFolder, source: str, resolution: int, min_size: int) -> Sample | Drop:
    """One picture with its caption, or why there is none."""
    try:
        raw = existing_caption(folder, source)
        content = (folder.root / source).read_bytes()
        picture = images.decode(content)
    except UnicodeDecodeError as error:
        return Drop(source, "caption is not UTF-8", "damage", str(error))
    except OSError as error:
        return Drop(source, "cannot be read", "damage", str(error))
    except images.DamagedImage as error:
        return Drop(source, error.reason, "damage", error.detail)
    caption = " ".join((raw or "").split())
    if raw is None or not caption:
        return Drop(source, "no caption" if raw is None else "empty caption", "policy")
    if min(picture.size) < min_size:
        return Drop(source, "too small", "policy", f"{picture.width}x{picture.height}")
    square, crop = images.centre_square(picture, resolution)
    suffix, stored = images.encode(square, lossless=square is picture)
    info = SampleInfo(
        key=key_of(source),
        caption=caption,
        caption_raw=raw,
        original_size=picture.size,
        crop=crop,
        content_hash=hashlib.sha256(content).hexdigest(),
        source=source,
        extra=extra_columns(folder, source),
    )
    return Sample(info.key, {"json": info.to_json(), suffix: stored})


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run_command("caption", __doc__, CaptionConfig, caption_folder, arguments)


if __name__ == "__main__":
    main()
