"""Encodings that data.encode stores of a picture and its caption, and how a trainer knows by what it was made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from data.shards.dataset import ShardDataset
from models.backbone import Backbone, fingerprint
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots

Encode = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""(images [b, 3, H, W] in [-1, 1], captions) -> tensors [b, ...] by the suffix under which they are stored."""


@dataclass(frozen=True)
class Encoding:
    """Members that are stored together.

    Args:
        encode: makes them.
        config: what decides their bytes; the stage refuses to go on in a folder with another.
        properties: what the loader and the trainers need to know of them.
        of: the picture of which they are made, a sample's own or the source picture of a pair.
    """

    encode: Encode
    config: Mapping[str, Any]
    properties: Mapping[str, Any]
    of: Literal["image", "source"] = "image"


def latents(backbone: Backbone, preprocessing: str) -> Encoding:
    """KEY.latent.npy [4, h, w]: the posterior's mean, scaled by the VAE's factor.

    Args:
        preprocessing: what was done to the pictures, in words; a part of the latents' fingerprint.
    """
    vae = backbone.vae_fingerprint
    known = {"vae_fingerprint": vae, "latent_fingerprint": f"{vae}, {preprocessing}, posterior mean"}
    return Encoding(
        lambda pictures, captions: {"latent.npy": backbone.encode_image(pictures.to(backbone.vae.device))},
        {"vae": vae},
        known,
    )


def source_latents(backbone: Backbone) -> Encoding:
    """Give KEY.source.npy [4, h, w], the latent of a pair's source picture.

    It is made as `latents` makes the edited picture's, whose fingerprint holds for both.
    """
    return Encoding(
        lambda pictures, captions: {"source.npy": backbone.encode_image(pictures.to(backbone.vae.device))},
        {},
        {},
        of="source",
    )


def latents_with_pivots(backbone: Backbone, preprocessing: str, resolution: int, ddim: Ddim) -> Encoding:
    """Give what `latents` gives, and KEY.pivots.npy [n + 1, 4, h, w].

    Pivots are the latents of a DDIM inversion at guidance 1 with the caption, from the noisiest to the picture's latent
    itself (Mokady et al. 2023, 3.1).
    """
    plain = latents(backbone, preprocessing)

    def encode(pictures: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        x0 = plain.encode(pictures, captions)["latent.npy"]
        pivots = ddim_pivots(backbone, ddim, x0, backbone.encode_text(captions, resolution))
        return {"latent.npy": x0, "pivots.npy": pivots.transpose(0, 1)}

    unet, text = unet_fingerprint(backbone), backbone.text_fingerprint
    known = {
        "unet_fingerprint": unet,
        "text_fingerprint": text,
        "pivot_fingerprint": pivot_fingerprint(backbone, ddim, plain.properties["latent_fingerprint"]),
    }
    return Encoding(
        encode,
        {**plain.config, "unet": unet, "text_encoders": text, "pivots": _steps(backbone, ddim)},
        {**plain.properties, **known},
    )


def prompts(backbone: Backbone, resolution: int) -> Encoding:
    """KEY.prompt.npy [L, D], the caption's token embeddings, and for SDXL KEY.pooled.npy [P]."""

    def encode(pictures: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        prompt = backbone.encode_text(captions, resolution)
        found = {"prompt.npy": prompt.embeds}
        return found if prompt.pooled is None else {**found, "pooled.npy": prompt.pooled}

    text = backbone.text_fingerprint
    return Encoding(encode, {"text_encoders": text}, {"text_fingerprint": text})


def image_tokens(tokens: ImageTokens) -> Encoding:
    """KEY.clip.npy [N, D]: all tokens of the picture from a CLIP."""
    known = tokens.fingerprint
    return Encoding(
        lambda pictures, captions: {"clip.npy": tokens(pictures)}, {"clip": known}, {"clip_fingerprint": known}
    )


def unet_fingerprint(backbone: Backbone) -> str:
    """Identifies the UNet that made pivots."""
    return fingerprint(backbone.unet, dict(backbone.unet.config))


def pivot_fingerprint(backbone: Backbone, ddim: Ddim, latent_fingerprint: str) -> str:
    """Names everything that decides the pivots of latents: UNet, text encoders, steps."""
    made_by = f"{unet_fingerprint(backbone)}, {backbone.text_fingerprint}, {_steps(backbone, ddim)}"
    return f"{made_by}, of {latent_fingerprint}"


def check_pivots(dataset: ShardDataset, backbone: Backbone, ddim: Ddim) -> None:
    """Check that the pivots of shards are those of a backbone and of these steps.

    Raises:
        ValueError: they are not, or there are none.
    """
    if dataset.pivot_fingerprint is None or dataset.latent_fingerprint is None:
        raise ValueError(f"{dataset.folder} holds no pivots; run data.encode with --pivots true")
    expected = pivot_fingerprint(backbone, ddim, dataset.latent_fingerprint)
    if dataset.pivot_fingerprint != expected:
        raise ValueError(
            f"the pivots in {dataset.folder} are {dataset.pivot_fingerprint}; this backbone and these steps make "
            f"{expected}; run data.encode --pivots true with this backbone and --pivot-steps {len(ddim)} "
            f"--steps-offset {ddim.timesteps[-1]} into a new folder, or train with the steps of the pivots"
        )


def check_image_tokens(dataset: ShardDataset, tokens: ImageTokens) -> None:
    """Check that the image tokens of shards were made by a CLIP.

    Raises:
        ValueError: another one made them, or there are none.
    """
    if dataset.clip_fingerprint != tokens.fingerprint:
        made_by = "hold none" if dataset.clip_fingerprint is None else f"are of {dataset.clip_fingerprint}"
        raise ValueError(
            f"image tokens of the CLIP {tokens.fingerprint} are needed, the shards in {dataset.folder} {made_by}; run "
            "data.encode with --clip and this CLIP into a new folder"
        )


def _steps(backbone: Backbone, ddim: Ddim) -> str:
    """The steps in words: "30 DDIM steps 958..1, v_prediction"."""
    return f"{len(ddim)} DDIM steps {ddim.timesteps[0]}..{ddim.timesteps[-1]}, {backbone.schedule.prediction_type}"
