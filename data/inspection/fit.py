"""Whether shards fit the backbone and the batch that a training will use."""

from dataclasses import dataclass
from pathlib import Path

from data.captioning.tokens import TokenLimits, is_former_identity
from data.inspection.findings import Findings, Kind
from data.inspection.folder import Contents
from data.pictures.buckets import size_name
from data.shards.dataset import ARRAYS, ShardDataset
from data.shards.sample import IMAGES

OTHER_VAE = Kind("the latents were made by another VAE than the backbone's", "run data.encode with this backbone")
OTHER_TEXT = Kind(
    "the prompt embeddings were made by other text encoders than the backbone's",
    "run data.encode --prompts true with this backbone, or train with generator.cached_prompts false",
)
OTHER_PIVOTS = Kind(
    "the pivots were made by another UNet or other text encoders than the backbone's",
    "run data.encode --pivots true with this backbone",
)
FORMER = Kind(
    "the shards were made by an earlier version, whose fingerprints held for its libraries alone",
    "run the data.encode that made them once more, with the same options: it compares a few pictures and renews them",
)
OTHER_SIZE = Kind(
    "the pictures have another size than those for which the backbone was made",
    "run data.caption with the --resolution that is expected, or data.edit_pairs with a --backbone of that size, then "
    "data.encode",
)
OTHER_TOKENIZERS = Kind(
    "the captions were made to fit other tokenizers than the backbone's",
    "run data.caption with this backbone into another folder",
    wrong=False,
)
FORMER_TOKENIZERS = Kind(
    "an earlier version named the tokenizers of the captions in the terms of its library",
    "run the data.caption that made them once more, with the same options: it compares counts and renews the names",
    wrong=False,
)
TOO_FEW = Kind("there are fewer samples than one global batch", "add pictures, or lower run.global_batch")
RARE = Kind(
    "a shape has fewer samples than one global batch, which waits over epochs for enough of them and then holds each "
    "several times",
    "nothing, or leave out pictures of such an aspect",
    wrong=False,
)
REFUSED = Kind("the loader refuses the folder", "do what it says")


@dataclass(frozen=True)
class IndexMemory:
    """Bytes that the loader holds in memory for each of its processes.

    Args:
        fields: names of the fields that it reads.
        bytes: size of its index.
    """

    fields: tuple[str, ...]
    bytes: int


def check_backbone(contents: Contents, path: str, variant: str | None, findings: Findings) -> None:
    """The fingerprints of latents, prompts and pivots, and the size of the pictures, against a backbone's.

    Args:
        variant: file variant of the backbone's weights, such as "fp16".

    Raises:
        ValueError or OSError: if there is no such backbone.
    """
    # They bring diffusers, seconds that an inspection without a backbone spares.
    from models.backbone import Backbone, dtype_of
    from models.fingerprints import (
        is_former_fingerprint,
        named,
        same_weights,
        text_fingerprint,
        unet_fingerprint,
        vae_fingerprint,
    )

    properties = contents.origin["properties"]
    latents, prompts, pivots = (ARRAYS[name] in contents.members for name in ("latent", "prompt", "pivots"))
    wanted = {"vae": latents, "text": prompts or pivots, "network": pivots}
    parts = [part for part, needed in wanted.items() if needed]
    backbone = Backbone.load(path, dtype=dtype_of("bfloat16"), parts=parts, variant=variant)
    checks = [
        (latents, "vae_fingerprint", vae_fingerprint, OTHER_VAE),
        (pivots, "unet_fingerprint", unet_fingerprint, OTHER_PIVOTS),
        (prompts or pivots, "text_fingerprint", text_fingerprint, OTHER_TEXT if prompts else OTHER_PIVOTS),
    ]
    for needed, name, of, kind in checks:
        if needed and not same_weights(found := properties.get(name), expected := of(backbone)):
            former = is_former_fingerprint(found)
            findings.add(FORMER if former else kind, f"{named(found)}, the backbone has {named(expected)}")
    size = _image_size(path)
    if properties.get("resolution") != size:
        findings.add(OTHER_SIZE, f"{properties.get('resolution')} px, {size} px are expected")


def check_tokenizers(contents: Contents, limits: TokenLimits, findings: Findings) -> None:
    """The tokenizers by which data.caption bounded the captions, where it did and says so."""
    tokenizers = contents.origin["config"].get("tokenizers")
    if tokenizers is not None and is_former_identity(str(tokenizers)):
        findings.add(FORMER_TOKENIZERS, f"{tokenizers}, the backbone has {limits.identity()}")
    # One tokenizer twice (SDXL's two often agree) bounds a caption as one does.
    elif tokenizers is not None and set(str(tokenizers).split()) != set(limits.identity().split()):
        findings.add(OTHER_TOKENIZERS, f"{tokenizers}, the backbone has {limits.identity()}")


def _image_size(path: str) -> int:
    """Backbone.image_size, from the config files alone: SDXL's UNet weighs ten gigabytes."""
    from models.backbone import Backbone

    return Backbone.outline(path).image_size


def check_global_batch(contents: Contents, global_batch: int, findings: Findings) -> None:
    """Enough samples for one global batch."""
    if contents.count < global_batch:
        findings.add(TOO_FEW, f"{contents.count:,} samples, a global batch of {global_batch:,}")
    for size, count in sorted(contents.sizes.items()):
        if count < global_batch:
            findings.add(RARE, f"{size_name(size)}: {count:,}")


def open_as_loader(folder: Path, contents: Contents, findings: Findings) -> list[IndexMemory]:
    """Opens a sound folder as training does; returns what its index takes in memory."""
    has_pictures = bool(set(IMAGES) & set(contents.members))
    arrays = [name for name, suffix in ARRAYS.items() if suffix in contents.members]
    first = ["latent"] if "latent" in arrays else ["image"] if has_pictures else []
    found = []
    for names in dict.fromkeys([(*first, "caption"), (*arrays, "caption")] if arrays else [(*first, "caption")]):
        try:
            found.append(IndexMemory(names, ShardDataset(folder, names).index_bytes))
        except ValueError as error:
            findings.add(REFUSED, str(error))
    return found
