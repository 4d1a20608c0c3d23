"""Samples with pictures become samples with encodings, a batch at a time."""

from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.jobs.device import choose_device, use_tf32
from data.jobs.errors import ShardError
from data.jobs.prefetch import in_order
from data.pictures import images
from data.shards.encode_config import EncodeConfig
from data.shards.encodings import Encoding, image_tokens, latents, latents_with_pivots, prompts, source_latents
from data.shards.sample import IMAGES, SOURCE_IMAGES, captions_of, parse_info
from data.shards.shard import Drop, Origin, Sample, npy_bytes
from data.shards.stage import library_versions
from models.backbone import Backbone, dtype_of
from models.clip import ImageTokens
from models.ddim import Ddim
from models.pictures import from_picture

_SUFFIXES = {"image": IMAGES, "source": SOURCE_IMAGES}
"""Those of each picture that an encoding can be of."""


_MOST_AT_ONCE = 32
_LEVELS_AT_ONCE = 5
"""Tensors as large as the first level of the VAE's encoder that there are at its peak: measured, 0.63 GB at 512 px."""
_ROOM_ON_CPU = 2 * 2**30


def open_encodings(config: EncodeConfig, properties: Mapping[str, Any], pairs: bool) -> tuple[list[Encoding], int]:
    """Open the encodings that are to be stored of pictures, or pairs of them, with these properties.

    Returns:
        The encodings, and the number of pictures to be encoded at once.
    """
    resolution = properties["resolution"]
    preprocessing = f"{resolution} px, {properties['preprocessing']}"
    device = choose_device(config.device)
    use_tf32(device)
    backbone = _load(config, device)
    if config.pivots:
        found = [latents_with_pivots(backbone, preprocessing, _ddim(config, backbone, resolution))]
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
    return found, config.batch or _pictures_at_once(backbone, resolution)


def _pictures_at_once(backbone: Backbone, resolution: int) -> int:
    """Number of pictures for which the VAE's encoder has room: half of a GPU's free memory, 2 GB elsewhere."""
    config = backbone.vae.config
    width = config.get("block_out_channels", config.get("encoder_block_out_channels"))[0]  # the latter of a DC-AE
    picture = _LEVELS_AT_ONCE * 4 * width * resolution**2
    device = backbone.vae.device
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _ROOM_ON_CPU
    return min(max(room // picture, 1), _MOST_AT_ONCE)


def _load(config: EncodeConfig, device: torch.device) -> Backbone:
    parts = ["vae", *(["text"] if config.prompts or config.pivots else []), *(["network"] if config.pivots else [])]
    try:
        # The VAE in float32: SDXL's overflows in float16, and bfloat16 would be coarser than what is stored.
        return Backbone.load(
            config.backbone, device=device, dtype=dtype_of(config.dtype), parts=parts, variant=config.variant
        )
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


def origin_of(config: EncodeConfig, encodings: Sequence[Encoding], properties: Mapping[str, Any]) -> Origin:
    """Origin of the shards: what the options and the encodings say of themselves."""
    decided: dict[str, Any] = {"text_encoders": None, "prompts": config.prompts, "keep_images": config.keep_images}
    if config.dtype != "float32":
        decided["dtype"] = config.dtype
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


def encode_unit(
    samples: Iterator[Sample | Drop], encodings: Sequence[Encoding], batch: int, keep_images: bool, pool: Executor
) -> Iterator[Sample | Drop]:
    """The outcomes of one unit, in the order of its samples; threads decode the next batch meanwhile."""
    decode = partial(_decode, {encoding.of for encoding in encodings})
    waiting: list[_Decoded | Drop] = []
    num_decoded = 0
    for item in in_order(pool, decode, samples, ahead=batch):
        waiting.append(item)
        num_decoded += isinstance(item, _Decoded)
        if num_decoded == batch:
            yield from _encode_batch(waiting, encodings, keep_images)
            waiting, num_decoded = [], 0
    yield from _encode_batch(waiting, encodings, keep_images)


@dataclass(frozen=True)
class _Decoded:
    """A sample with its pictures [3, H, W], as encodings name them, and its captions."""

    sample: Sample
    pictures: Mapping[str, Tensor]
    captions: Sequence[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its pictures."""
        return tuple(next(iter(self.pictures.values())).shape)


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
        return _Decoded(sample, pictures, captions_of(parse_info(sample.members["json"])))
    except ValueError as error:
        return Drop(sample.key, "bad json", "damage", str(error))


def _encode_batch(
    items: Sequence[_Decoded | Drop], encodings: Sequence[Encoding], keep_images: bool
) -> Iterator[Sample | Drop]:
    """Encodes pictures of one shape together; one whose encoding is not finite in fp16 is dropped as damage."""
    arrays: dict[int, Mapping[str, np.ndarray]] = {}
    by_shape: dict[tuple[int, ...], list[tuple[int, _Decoded]]] = {}
    for number, item in enumerate(items):
        if isinstance(item, _Decoded):
            by_shape.setdefault(item.shape, []).append((number, item))
    for alike in by_shape.values():
        columns = _columns([item for _, item in alike], encodings)
        for row, (number, _) in enumerate(alike):
            arrays[number] = {suffix: column[row] for suffix, column in columns.items()}
    for number, item in enumerate(items):
        yield item if isinstance(item, Drop) else _encoded(item, arrays[number], keep_images)


def _columns(decoded: Sequence[_Decoded], encodings: Sequence[Encoding]) -> dict[str, np.ndarray]:
    """The encodings, float16 [b, ...] by suffix, of pictures of one shape and their first captions."""
    captions = [item.captions[0] for item in decoded]
    pictures = {
        of: torch.stack([item.pictures[of] for item in decoded]).contiguous(memory_format=torch.channels_last)
        for of in decoded[0].pictures
    }
    found = {
        suffix: array
        for encoding in encodings
        for suffix, array in encoding.encode(pictures[encoding.of], captions).items()
    }
    return {suffix: tensor.to("cpu", torch.float16).numpy() for suffix, tensor in found.items()}


def _encoded(decoded: _Decoded, arrays: Mapping[str, np.ndarray], keep_images: bool) -> Sample | Drop:
    """The sample as it is stored."""
    sample = decoded.sample
    broken = [suffix for suffix, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        return Drop(sample.key, "encoding is not finite", "damage", ", ".join(broken))
    kept = {suffix: sample.members[suffix] for suffix in ("json", *IMAGES, *SOURCE_IMAGES) if suffix in sample.members}
    if not keep_images:
        kept = {"json": kept["json"]}
    checks = {"captions": len(decoded.captions)} if len(decoded.captions) > 1 else {}
    members = kept | {suffix: npy_bytes(array) for suffix, array in arrays.items()}
    return Sample(sample.key, members, checks, sample.size)
