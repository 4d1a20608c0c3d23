"""Encodings that data.encode stores of a picture and its caption."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots
from models.fingerprints import clip_fingerprint, named, text_fingerprint, unet_fingerprint, vae_fingerprint
from models.shapes import SizeConditioning

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
    vae = vae_fingerprint(backbone)
    known = {"vae_fingerprint": vae, "latent_fingerprint": f"{named(vae)}, {preprocessing}, posterior mean"}
    return Encoding(
        lambda pictures, captions: {"latent.npy": backbone.encode_image(pictures.to(backbone.vae.device))},
        {"vae": named(vae)},
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


def latents_with_pivots(backbone: Backbone, preprocessing: str, ddim: Ddim) -> Encoding:
    """Give what `latents` gives, and KEY.pivots.npy [n + 1, 4, h, w].

    Pivots are the latents of a DDIM inversion at guidance 1 with the caption, from the noisiest to the picture's latent
    itself (Mokady et al. 2023, 3.1).
    """
    plain = latents(backbone, preprocessing)

    def encode(pictures: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        x0 = plain.encode(pictures, captions)["latent.npy"]
        pivots = ddim_pivots(backbone, ddim, x0, backbone.encode_text(captions, backbone.size_of(x0)))
        return {"latent.npy": x0, "pivots.npy": pivots.transpose(0, 1)}

    unet, text, steps = unet_fingerprint(backbone), text_fingerprint(backbone), pivot_steps(backbone, ddim)
    return Encoding(
        encode,
        {**plain.config, "unet": named(unet), "text_encoders": named(text), "pivots": steps},
        {**plain.properties, "unet_fingerprint": unet, "text_fingerprint": text, "pivot_steps": steps},
    )


def prompts(backbone: Backbone, resolution: int) -> Encoding:
    """KEY.prompt.npy [L, D], a caption's embeddings; KEY.pooled.npy [P], KEY.mask.npy [L] if a model has them."""
    size = SizeConditioning.uncropped(resolution, resolution)

    def encode(pictures: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        prompt = backbone.encode_text(captions, size)
        beside = {"pooled.npy": prompt.pooled, "mask.npy": prompt.mask}
        return {"prompt.npy": prompt.embeds} | {name: x for name, x in beside.items() if x is not None}

    text = text_fingerprint(backbone)
    return Encoding(encode, {"text_encoders": named(text)}, {"text_fingerprint": text})


def image_tokens(tokens: ImageTokens) -> Encoding:
    """KEY.clip.npy [N, D]: all tokens of the picture from a CLIP."""
    known = clip_fingerprint(tokens)
    return Encoding(
        lambda pictures, captions: {"clip.npy": tokens(pictures)}, {"clip": named(known)}, {"clip_fingerprint": known}
    )


def pivot_steps(backbone: Backbone, ddim: Ddim) -> str:
    """The steps of pivots in words: "30 DDIM steps 958..1, v_prediction"."""
    return f"{len(ddim)} DDIM steps {ddim.timesteps[0]}..{ddim.timesteps[-1]}, {backbone.schedule.prediction_type}"
