"""Stage captioned shards or edit pairs -> training shards: KEY.latent.npy from the VAE and, on request, more.

    python -m data.encode SHARDS OUT --backbone stabilityai/sdxl-turbo [--prompts true]
    python -m data.encode SHARDS OUT --backbone CompVis/stable-diffusion-v1-4 --pivots true --clip \
        openai/clip-vit-base-patch16

One shard comes in, one shard of the same name goes out; of the pairs of data.edit_pairs it also holds KEY.source.npy.
Run the same command again after a kill; `accelerate launch -m data.encode ...` and `srun` divide the shards over
processes, each with its own GPU.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from data.jobs.command import run
from data.jobs.errors import ShardError
from data.shards.encode_config import EncodeConfig
from data.shards.sample import IMAGES, SOURCE_IMAGES
from data.shards.shard import Drop, Sample, num_several, read_manifest, read_samples, read_sidecar
from data.shards.stage import Unit, run_stage

logger = logging.getLogger(__name__)


def encode_shards(source: str | Path, out: str | Path, config: EncodeConfig) -> dict[str, Any]:
    """Runs the stage on a finished folder of shards; returns the manifest of `out`.

    Raises:
        ShardError: for an input that holds no finished shards with pictures, a backbone or CLIP that cannot be loaded,
            or pivots that cannot be made; see also `data.shards.stage.run_stage`.
    """
    folder = Path(source)
    manifest, pairs = _manifest_with_images(folder)
    _tell_captions(manifest, config)
    from data.shards.encoder import encode_unit, open_encodings, origin_of  # torch and diffusers take seconds
    from data.shards.renewal import renew

    encodings, batch = open_encodings(config, manifest["properties"], pairs)
    units = [Unit(unit["unit"], range(unit["count"]), unit["sha256"]) for unit in manifest["units"]]
    with ThreadPoolExecutor(config.threads) as pool:

        def encode(unit: str, count: int | None = None) -> Iterator[Sample | Drop]:
            samples = islice(read_samples(folder, read_sidecar(folder / f"{unit}.json")), count)
            return encode_unit(samples, encodings, batch, config.keep_images, pool)

        origin = origin_of(config, encodings, manifest["properties"])
        renew(Path(out), origin, encode)
        return run_stage(units, Path(out), lambda unit: encode(unit.name), origin, config.max_damage)


def _tell_captions(manifest: dict[str, Any], config: EncodeConfig) -> None:
    """Log which captions prompts and pivots are made of, where samples have several."""
    made = [name for name, wanted in (("prompts", config.prompts), ("pivots", config.pivots)) if wanted]
    if made and (several := num_several(manifest["checks"])):
        logger.warning(
            "%d of %d samples have several captions: the stored %s are of the first alone, which a training on them "
            "takes in every epoch",
            several,
            manifest["count"],
            " and ".join(made),
        )


def _manifest_with_images(folder: Path) -> tuple[dict[str, Any], bool]:
    """The manifest, and whether the shards hold pairs of pictures."""
    manifest = read_manifest(folder)
    filled = next((unit["unit"] for unit in manifest["units"] if unit["count"]), None)
    held = sorted(read_sidecar(folder / f"{filled}.json")["members"]) if filled else []
    if not set(held) & set(IMAGES):
        raise ShardError(
            f"the shards in {folder} hold no pictures ({held}); give an OUT folder of data.caption or data.edit_pairs"
        )
    return manifest, bool(set(held) & set(SOURCE_IMAGES))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.encode", encode_shards, arguments, positional=True)


if __name__ == "__main__":
    main()
