"""Stage captioned shards or edit pairs -> training shards: KEY.latent.npy from the VAE and, on request, more.

    python -m data.encode SHARDS OUT --backbone stabilityai/sdxl-turbo [--prompts true]
    python -m data.encode SHARDS OUT --backbone CompVis/stable-diffusion-v1-4 --pivots true --clip \
        openai/clip-vit-base-patch16

One shard comes in, one shard of the same name goes out; of the pairs of data.edit_pairs it also holds KEY.source.npy.
Run the same command again after a kill; `accelerate launch -m data.encode ...` and `srun` divide the shards over
processes, each with its own GPU.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.jobs.command import run
from data.jobs.errors import ShardError
from data.jobs.prefetch import in_order
from data.jobs.sharing import Ranks
from data.pictures import images
from data.shards.dataset import IMAGES, SOURCE_IMAGES
from data.shards.encodings import Encoding, image_tokens, latents, latents_with_pivots, prompts, source_latents
from data.shards.sample import parse_info
from data.shards.shard import Drop, Origin, Sample, npy_bytes, read_manifest, read_samples, read_sidecar
from data.shards.stage import Unit, library_versions, run_stage
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.pictures import from_picture

_SUFFIXES = {"image": IMAGES, "source": SOURCE_IMAGES}
"""Those of each picture that an encoding can be of."""


@dataclass(frozen=True)
class EncodeConfig:
    """Options of the stage.

    Args:
        backbone: diffusers folder or hub id whose VAE (and text encoders, and UNet) encode.
        prompts: also store prompt embeddings (KEY.prompt.npy, and KEY.pooled.npy for SDXL); they are ten times as
            large as latents and spare about one percent of a training step.
        pivots: also store the latents of a DDIM inversion at guidance 1 with the caption (KEY.pivots.npy), n + 1 times
            as large as the latent.
        pivot_steps: n, the inversion's steps; StyleDiffusion takes 30.
        steps_offset: 1 for Stable Diffusion's timesteps, down to 1; 0 for those of the official codes, down to 0.
        clip: folder or hub id of a CLIP whose image tokens are stored too (KEY.clip.npy).
        keep_images: keep the pictures beside their latents, of a pair both.
        batch: pictures that a network takes at once.
        device: where the networks run; "auto" takes each process's own GPU if there is one.
        max_damage: share of unreadable samples over which the stage stops.
        threads: threads that decode pictures in each process.
    """

    backbone: str
    prompts: bool = False
    pivots: bool = False
    pivot_steps: int = 30
    steps_offset: int = 1
    clip: str | None = None
    keep_images: bool = False
    batch: int = 32
    device: str = "auto"
    max_damage: float = 0.05
    threads: int = 4

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected at least 1")
        usual = (EncodeConfig.pivot_steps, EncodeConfig.steps_offset)
        if not self.pivots and (self.pivot_steps, self.steps_offset) != usual:
            raise ValueError(
                f"--pivot-steps is {self.pivot_steps} and --steps-offset {self.steps_offset}, but no pivots are made; "
                "add --pivots true"
            )


def encode_shards(source: str | Path, out: str | Path, config: EncodeConfig) -> dict[str, Any]:
    """Runs the stage on a finished folder of shards; returns the manifest of `out`.

    Raises:
        ShardError: for an input that holds no finished shards with pictures, a backbone or CLIP that cannot be loaded,
            or pivots that cannot be made; see also `data.stage.run_stage`.
    """
    folder = Path(source)
    manifest, pairs = _manifest_with_images(folder)
    encodings = _encodings(config, manifest["properties"], pairs)
    units = [Unit(unit["unit"], range(unit["count"]), unit["sha256"]) for unit in manifest["units"]]
    with ThreadPoolExecutor(config.threads) as pool:

        def process(unit: Unit) -> Iterator[Sample | Drop]:
            samples = read_samples(folder, read_sidecar(folder / f"{unit.name}.json"))
            return _encode_unit(samples, encodings, config, pool)

        return run_stage(
            units, Path(out), process, _origin(config, encodings, manifest["properties"]), config.max_damage
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


def _encodings(config: EncodeConfig, properties: Mapping[str, Any], pairs: bool) -> list[Encoding]:
    """What is to be stored of pictures, or pairs of them, with these properties."""
    resolution = properties["resolution"]
    preprocessing = f"{resolution} px, {properties['preprocessing']}"
    device = _device(config)
    backbone = _load(config, device)
    if config.pivots:
        found = [latents_with_pivots(backbone, preprocessing, resolution, _ddim(config, backbone, resolution))]
    else:
        found = [latents(backbone, preprocessing)]
    if pairs:
        found.append(source_latents(backbone))
    if config.prompts:
        found.append(prompts(backbone, resolution))
    if config.clip:
        try:
            found.append(image_tokens(ImageTokens.load(config.clip, device)))
        except (OSError, ValueError) as error:
            raise ShardError(f"--clip {config.clip} cannot be loaded: {error}") from error
    return found


def _device(config: EncodeConfig) -> str:
    if config.device != "auto":
        return config.device
    return f"cuda:{Ranks.local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _load(config: EncodeConfig, device: str) -> Backbone:
    parts = ["vae", *(["text"] if config.prompts or config.pivots else []), *(["unet"] if config.pivots else [])]
    try:
        # All in float32: SDXL's VAE overflows in float16, and bfloat16 would be coarser than what is stored.
        return Backbone.load(config.backbone, device=device, parts=parts)
    except (OSError, ValueError) as error:
        raise ShardError(f"--backbone {config.backbone} cannot be loaded: {error}") from error


def _ddim(config: EncodeConfig, backbone: Backbone, resolution: int) -> Ddim:
    """The steps of the pivots."""
    if resolution != backbone.image_size:
        raise ShardError(
            f"--pivots true needs pictures of {backbone.image_size} px, for which the UNet of {config.backbone} was "
            f"made; these have {resolution} px: run data.caption with --resolution {backbone.image_size}"
        )
    try:
        return Ddim(backbone.schedule, config.pivot_steps, config.steps_offset)
    except ValueError as error:
        raise ShardError(f"--pivot-steps {config.pivot_steps} --steps-offset {config.steps_offset}: {error}") from error


def _origin(config: EncodeConfig, encodings: Sequence[Encoding], properties: Mapping[str, Any]) -> Origin:
    """What the options and the encodings say of themselves."""
    decided: dict[str, Any] = {"text_encoders": None, "prompts": config.prompts, "keep_images": config.keep_images}
    known = {**properties, "text_fingerprint": None}
    for encoding in encodings:
        decided |= encoding.config
        known |= encoding.properties
    return Origin(
        stage="encode",
        config=decided,
        versions=library_versions("torch", "diffusers", "transformers", "webdataset"),
        properties=known,
    )


def _encode_unit(
    samples: Iterator[Sample | Drop], encodings: Sequence[Encoding], config: EncodeConfig, pool: Executor
) -> Iterator[Sample | Drop]:
    """The outcomes of one unit, in the order of its samples; threads decode the next batch meanwhile."""
    decode = partial(_decode, {encoding.of for encoding in encodings})
    waiting: list[_Decoded | Drop] = []
    num_decoded = 0
    for item in in_order(pool, decode, samples, ahead=config.batch):
        waiting.append(item)
        num_decoded += isinstance(item, _Decoded)
        if num_decoded == config.batch:
            yield from _encode_batch(waiting, encodings, config.keep_images)
            waiting, num_decoded = [], 0
    yield from _encode_batch(waiting, encodings, config.keep_images)


@dataclass(frozen=True)
class _Decoded:
    """A sample with its pictures [3, H, W], as encodings name them, and its caption."""

    sample: Sample
    pictures: Mapping[str, Tensor]
    caption: str


def _decode(wanted: Set[str], sample: Sample | Drop) -> "_Decoded | Drop":
    """The wanted pictures of a sample."""
    if isinstance(sample, Drop):
        return sample
    held = {of: next((s for s in _SUFFIXES[of] if s in sample.members), "") for of in sorted(wanted)}
    if not all(held.values()) or "json" not in sample.members:
        return Drop(sample.key, "missing member", "damage", f"found only {sorted(sample.members)}")
    pictures: dict[str, Tensor] = {}
    for of, suffix in held.items():
        try:
            pictures[of] = from_picture(images.decode(sample.members[suffix]))
        except images.DamagedImage as error:
            reason = error.reason if of == "image" else f"source picture: {error.reason}"
            return Drop(sample.key, reason, "damage", error.detail)
    shapes = {of: tuple(image.shape) for of, image in pictures.items()}
    if len(set(shapes.values())) > 1:
        return Drop(sample.key, "pictures of different sizes", "damage", str(shapes))
    try:
        return _Decoded(sample, pictures, parse_info(sample.members["json"])["caption"])
    except ValueError as error:
        return Drop(sample.key, "bad json", "damage", str(error))


def _encode_batch(
    items: Sequence[_Decoded | Drop], encodings: Sequence[Encoding], keep_images: bool
) -> Iterator[Sample | Drop]:
    """Encodes pictures together; one whose encoding is not finite in fp16 is dropped as damage."""
    decoded = [item for item in items if isinstance(item, _Decoded)]
    columns: dict[str, np.ndarray] = {}
    if decoded:
        captions = [item.caption for item in decoded]
        pictures = {
            of: torch.stack([item.pictures[of] for item in decoded]).contiguous(memory_format=torch.channels_last)
            for of in decoded[0].pictures
        }
        found = {
            suffix: array
            for encoding in encodings
            for suffix, array in encoding.encode(pictures[encoding.of], captions).items()
        }
        columns = {suffix: tensor.to("cpu", torch.float16).numpy() for suffix, tensor in found.items()}
    rows = iter(range(len(decoded)))
    for item in items:
        if isinstance(item, Drop):
            yield item
            continue
        row = next(rows)
        yield _encoded(item.sample, {suffix: column[row] for suffix, column in columns.items()}, keep_images)


def _encoded(sample: Sample, arrays: Mapping[str, np.ndarray], keep_images: bool) -> Sample | Drop:
    """The sample as it is stored."""
    broken = [suffix for suffix, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        return Drop(sample.key, "encoding is not finite", "damage", ", ".join(broken))
    kept = {suffix: sample.members[suffix] for suffix in ("json", *IMAGES, *SOURCE_IMAGES) if suffix in sample.members}
    if not keep_images:
        kept = {"json": kept["json"]}
    return Sample(sample.key, kept | {suffix: npy_bytes(array) for suffix, array in arrays.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.encode", encode_shards, arguments, positional=True)


if __name__ == "__main__":
    main()
