"""Stage captioned shards -> training shards: KEY.latent.npy from the VAE and, on request, prompt embeddings.

    python -m data.encode SHARDS OUT --backbone stabilityai/sdxl-turbo [--prompts true]

One shard comes in, one shard of the same name goes out. Run the same command again after a kill.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import images
from data.command import run_command
from data.dataset import IMAGES
from data.sample import parse_info
from data.shards import Drop, Origin, Sample, ShardError, npy_bytes, read_finished, read_samples
from data.stage import Unit, library_versions, run_stage
from models.backbone import Backbone

Encoding = Callable[[torch.Tensor, Sequence[str]], Mapping[str, torch.Tensor]]
"""(images [b, 3, H, W] in [-1, 1], captions) -> tensors [b, ...] by the suffix under which they are stored."""


@dataclass(frozen=True)
class EncodeConfig:
    """Options of the stage.

    Args:
        backbone: diffusers folder or hub id whose VAE (and text encoders) encode.
        prompts: also store prompt embeddings (KEY.prompt.npy, and KEY.pooled.npy for SDXL); they are ten times as
            large as latents and spare about one percent of a training step.
        keep_images: keep the pictures beside their latents.
        batch: pictures that the VAE takes at once.
        device: where the backbone runs; "auto" takes a GPU if there is one.
        max_damage: share of unreadable samples over which the stage stops.
    """

    backbone: str
    prompts: bool = False
    keep_images: bool = False
    batch: int = 32
    device: str = "auto"
    max_damage: float = 0.05

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"--batch is {self.batch}, expected at least 1")


def encode_shards(source: str | Path, out: str | Path, config: EncodeConfig) -> dict[str, Any]:
    """Runs the stage on a finished folder of shards; returns the manifest of `out`.

    Raises:
        ShardError: for an input that holds no finished shards with pictures; see also `data.stage.run_stage`.
    """
    folder = Path(source)
    sidecars = _shards_with_images(folder)
    device = _device(config.device)
    backbone = Backbone.load(config.backbone, device=device, parts=("vae", "text") if config.prompts else ("vae",))
    properties = next(iter(sidecars.values()))["properties"]
    origin = _origin(config, backbone, properties)
    units = [Unit(name, sidecar["keys"], sidecar["sha256"]) for name, sidecar in sidecars.items()]
    encodings: list[Encoding] = [_latents(backbone, device)]
    if config.prompts:
        encodings.append(_prompts(backbone, properties["resolution"]))

    def process(unit: Unit) -> Iterator[Sample | Drop]:
        return _encode_unit(read_samples(folder, sidecars[unit.name]), encodings, config)

    return run_stage(units, Path(out), process, origin, config.max_damage)


def _shards_with_images(folder: Path) -> dict[str, dict[str, Any]]:
    sidecars = read_finished(folder)
    held = {suffix for sidecar in sidecars.values() for suffix in sidecar["members"]}
    if not held & set(IMAGES):
        raise ShardError(
            f"the shards in {folder} hold no pictures ({sorted(held)}); give an OUT folder of data.caption"
        )
    return sidecars


def _origin(config: EncodeConfig, backbone: Backbone, properties: dict[str, Any]) -> Origin:
    vae = backbone.vae_fingerprint
    text = backbone.text_fingerprint if config.prompts else None
    preprocessing = f"{properties['resolution']} px, {properties['preprocessing']}"
    return Origin(
        stage="encode",
        config={"vae": vae, "text_encoders": text, "prompts": config.prompts, "keep_images": config.keep_images},
        versions=library_versions("torch", "diffusers", "transformers", "webdataset"),
        properties={
            **properties,
            "vae_fingerprint": vae,
            "text_fingerprint": text,
            "latent_fingerprint": f"{vae}, {preprocessing}, posterior mean",
        },
    )


def _latents(backbone: Backbone, device: str) -> Encoding:
    """The posterior's mean, scaled by the VAE's factor."""
    return lambda pictures, captions: {"latent.npy": backbone.encode_image(pictures.to(device))}


def _prompts(backbone: Backbone, resolution: int) -> Encoding:
    """Token embeddings and, for SDXL, the pooled embedding of the captions."""

    def encode(pictures: torch.Tensor, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        prompt = backbone.encode_text(captions, resolution)
        found = {"prompt.npy": prompt.embeds}
        return found if prompt.pooled is None else {**found, "pooled.npy": prompt.pooled}

    return encode


def _encode_unit(
    samples: Iterator[Sample | Drop], encodings: Sequence[Encoding], config: EncodeConfig
) -> Iterator[Sample | Drop]:
    """The outcomes of one unit, in the order of its samples."""
    pending: list[_Decoded] = []
    for sample in samples:
        decoded = sample if isinstance(sample, Drop) else _decode(sample)
        if isinstance(decoded, Drop):
            yield from _encode_batch(pending, encodings, config.keep_images)
            pending = []
            yield decoded
            continue
        pending.append(decoded)
        if len(pending) == config.batch:
            yield from _encode_batch(pending, encodings, config.keep_images)
            pending = []
    yield from _encode_batch(pending, encodings, config.keep_images)


@dataclass(frozen=True)
class _Decoded:
    """A sample with its picture [3, H, W] and caption."""

    sample: Sample
    pixels: np.ndarray
    caption: str


def _decode(sample: Sample) -> "_Decoded | Drop":
    picture = next((sample.members[suffix] for suffix in IMAGES if suffix in sample.members), None)
    if picture is None or "json" not in sample.members:
        return Drop(sample.key, "missing member", "damage", f"found only {sorted(sample.members)}")
    try:
        return _Decoded(sample, images.to_array(images.decode(picture)), parse_info(sample.members["json"])["caption"])
    except images.DamagedImage as error:
        return Drop(sample.key, error.reason, "damage", error.detail)
    except ValueError as error:
        return Drop(sample.key, "bad json", "damage", str(error))


def _encode_batch(
    decoded: Sequence[_Decoded], encodings: Sequence[Encoding], keep_images: bool
) -> Iterator[Sample | Drop]:
    """Encodes pictures together; one whose encoding is not finite in fp16 is dropped as damage."""
    if not decoded:
        return
    pictures = torch.from_numpy(np.stack([item.pixels for item in decoded]))
    captions = [item.caption for item in decoded]
    found = {suffix: array for encoding in encodings for suffix, array in encoding(pictures, captions).items()}
    columns = {suffix: tensor.to("cpu", torch.float16).numpy() for suffix, tensor in found.items()}
    for row, item in enumerate(decoded):
        kept = {"json": item.sample.members["json"]}
        if keep_images:
            kept |= {suffix: content for suffix, content in item.sample.members.items() if suffix in IMAGES}
        arrays = {suffix: column[row] for suffix, column in columns.items()}
        broken = [suffix for suffix, array in arrays.items() if not np.isfinite(array).all()]
        if broken:
            yield Drop(item.sample.key, "encoding is not finite", "damage", ", ".join(broken))
        else:
            yield Sample(item.sample.key, kept | {suffix: npy_bytes(array) for suffix, array in arrays.items()})


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run_command("encode", __doc__, EncodeConfig, encode_shards, arguments)


if __name__ == "__main__":
    main()
