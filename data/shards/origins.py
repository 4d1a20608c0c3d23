"""Whether shards were made by the networks of a training: what it refuses before it begins."""

from data.shards.dataset import ShardDataset
from data.shards.encodings import pivot_steps
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.fingerprints import (
    clip_fingerprint,
    is_former_fingerprint,
    named,
    same_weights,
    text_fingerprint,
    unet_fingerprint,
    vae_fingerprint,
)


def check_latents(dataset: ShardDataset, backbone: Backbone) -> None:
    """Check that the latents of shards fit a backbone.

    Raises:
        ValueError: another VAE made them, or they are of pictures of another size than the UNet's.
    """
    if dataset.vae_fingerprint is None:
        raise ValueError(f"{dataset.folder} holds no latents; run data.encode on it with this backbone")
    _check(dataset, "the latents", "another VAE", dataset.vae_fingerprint, vae_fingerprint(backbone), "")
    if dataset.resolution != backbone.image_size:
        raise ValueError(
            f"the latents in {dataset.folder} are of {dataset.resolution} px pictures, this backbone's UNet was made "
            f"for {backbone.image_size} px; run data.caption with --resolution {backbone.image_size}, then data.encode"
        )


def check_prompts(dataset: ShardDataset, text: str) -> None:
    """Check that the prompts of shards were made by text encoders of the fingerprint `text`.

    Raises:
        ValueError: others made them.
    """
    cure = ", with --prompts true, or set generator.cached_prompts false"
    _check(dataset, "the prompts", "other text encoders", dataset.text_fingerprint, text, cure)


def check_pivots(dataset: ShardDataset, backbone: Backbone, ddim: Ddim) -> None:
    """Check that the pivots of shards are those of a backbone and of these steps.

    Raises:
        ValueError: they are not, or there are none.
    """
    if dataset.unet_fingerprint is None:
        raise ValueError(f"{dataset.folder} holds no pivots; run data.encode with --pivots true")
    cure = ", with --pivots true"
    _check(dataset, "the pivots", "another UNet", dataset.unet_fingerprint, unet_fingerprint(backbone), cure)
    _check(dataset, "the pivots", "other text encoders", dataset.text_fingerprint, text_fingerprint(backbone), cure)
    expected = pivot_steps(backbone, ddim)
    if dataset.pivot_steps != expected:
        raise ValueError(
            f"the pivots in {dataset.folder} are of {dataset.pivot_steps}, the training takes {expected}; run "
            f"data.encode --pivots true with --pivot-steps {len(ddim)} --steps-offset {ddim.timesteps[-1]} into a new "
            "folder, or train with the steps of the pivots"
        )


def check_image_tokens(dataset: ShardDataset, tokens: ImageTokens) -> None:
    """Check that the image tokens of shards were made by a CLIP.

    Raises:
        ValueError: another one made them, or there are none.
    """
    if dataset.clip_fingerprint is None:
        raise ValueError(f"{dataset.folder} holds no image tokens; run data.encode with --clip and the CLIP's folder")
    cure = ", with --clip and this CLIP"
    _check(dataset, "the image tokens", "another CLIP", dataset.clip_fingerprint, clip_fingerprint(tokens), cure)


def _check(dataset: ShardDataset, what: str, other: str, made_by: str | None, expected: str, cure: str) -> None:
    """Raises ValueError if `what` was made by networks of another fingerprint than is expected."""
    if same_weights(made_by, expected):
        return
    if is_former_fingerprint(made_by):
        raise ValueError(
            f"{dataset.folder} was made by an earlier version, whose fingerprints ({made_by}) held for its libraries "
            "alone: run the data.encode that made it once more, with the same options; it encodes a few pictures anew, "
            "compares them with what is there, and writes today's fingerprints beside it"
        )
    raise ValueError(
        f"{what} in {dataset.folder} were made by {other}: {named(made_by)}, here it is {named(expected)}; run "
        f"data.encode with this model into a new folder{cure}"
    )
