"""Tasks of the parts that look at pictures: the VAE, CLIP and the attribute reader."""

import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from data.world.description import BACKGROUNDS, OBJECT_VALUES, PLACES, STYLES, Scene, attribute_targets
from eval.metrics.attributes import AttributeReader, agreement, stack_targets
from models.text import tokenize
from train.rng import StepRandom
from train.task import Batch, StepLoss


class _Autoencoder(nn.Module):
    """Round trip through a sampled latent, as one call that DDP can wrap."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image).latent_dist
        latent = posterior.mean + posterior.std * noise
        return self.vae.decode(latent).sample.float(), posterior.kl()


class VaeTask:
    """Mean squared error, for PSNR, and a KL just large enough to keep the latents bounded and smooth."""

    fields: tuple[str, ...] = ("image",)
    groups: tuple[str, ...] = ()
    kl_weight = 2e-7

    def __init__(self, vae: AutoencoderKL) -> None:
        self.trainable: nn.Module = _Autoencoder(vae)

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """E ||x - D(z)||^2 + lambda KL."""
        image = batch["image"]
        decoded, kl = model(image, rng.normal("latent", (4, image.shape[2] // 4, image.shape[3] // 4)))
        mse = F.mse_loss(decoded, image, reduction="none").flatten(1).mean(1)
        terms = {"mse": mse.mean(), "weighted_kl": self.kl_weight * kl.mean()}
        return StepLoss(terms, {"psnr": (10 * torch.log10(4 / mse)).detach(), "kl": kl.detach()})

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Picture and round trip."""
        image = batch["image"][:8]
        decoded, _ = model(
            image, torch.zeros(len(image), 4, image.shape[2] // 4, image.shape[3] // 4, device=image.device)
        )
        return {"image": image, "round trip": decoded}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means


_SWAPS: dict[str, tuple[str, ...]] = {
    word: values for values in (*OBJECT_VALUES.values(), PLACES, BACKGROUNDS, STYLES) for word in values
}


def wrong_caption(caption: str, chooser: random.Random) -> str:
    """The caption with one word replaced by another value of its attribute: a hard negative."""
    words = caption.replace(",", " ,").split()
    places = [place for place, word in enumerate(words) if word in _SWAPS]
    if places:
        place = chooser.choice(places)
        words[place] = chooser.choice([value for value in _SWAPS[words[place]] if value != words[place]])
    return " ".join(words).replace(" ,", ",")


class _Contrast(nn.Module):
    """Logits of B pictures against 2B captions."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.clip(input_ids=ids, pixel_values=image).logits_per_image.float()


class ClipTask:
    """Contrastive pairs; every picture also meets its own caption with one word changed."""

    fields: tuple[str, ...] = ("image", "caption")
    groups: tuple[str, ...] = ()

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        self.trainable: nn.Module = _Contrast(clip)
        self.tokenizer = tokenizer

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Cross entropy picture -> caption over 2B captions and caption -> picture."""
        image, captions = batch["image"], batch["caption"]
        chooser = random.Random(f"{rng.seed} {rng.step} {rng.host_rows[0].item()}")
        captions = [*captions, *(wrong_caption(caption, chooser) for caption in captions)]
        logits = model(image, tokenize(self.tokenizer, captions, image.device))
        labels = torch.arange(len(image), device=image.device)
        terms = {
            "to_text": 0.5 * F.cross_entropy(logits, labels),
            "to_image": 0.5 * F.cross_entropy(logits[:, : len(image)].T, labels),
        }
        own, changed = logits.diagonal(), logits.diagonal(len(image))
        return StepLoss(terms, {"beats_wrong_word": (own > changed).float().detach()})

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Nothing to see."""
        return {}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means


class ReaderTask:
    """Cross entropy of every attribute, on renders and, where a VAE is given, on their round trips too."""

    fields: tuple[str, ...] = ("image", "info")
    groups: tuple[str, ...] = ()

    def __init__(self, reader: AttributeReader, vae: AutoencoderKL | None = None) -> None:
        self.trainable: nn.Module = reader
        self.reader = reader
        self.vae = vae

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Half of the pictures go through the VAE first; a little noise keeps the reader from trusting exact pixels."""
        image = batch["image"]
        targets = targets_of(batch, image.device)
        if self.vae is not None:
            image = torch.where(
                (rng.uniform("round trip") < 0.5).to(image.device)[:, None, None, None],
                round_trip(self.vae, image),
                image,
            )
        image = image + 0.02 * rng.normal("jitter", image.shape[1:])
        return StepLoss({"cross_entropy": self.reader.loss(model(image), targets)})

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Nothing to see."""
        return {}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means


def targets_of(batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """The attributes of a batch of scenes, from the description in `info`."""
    scenes = [Scene.from_dict(info["extra"]["scene"]) for info in batch["info"]]
    return {name: value.to(device) for name, value in stack_targets(attribute_targets(s) for s in scenes).items()}


@torch.no_grad()
def round_trip(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """The VAE's decoding of its posterior mean, clipped to [-1, 1]."""
    return vae.decode(vae.encode(image.to(vae.dtype)).latent_dist.mode()).sample.to(image.dtype).clamp(-1, 1)


def reader_agreement(reader: AttributeReader, images: Tensor, batch: Batch) -> dict[str, float]:
    """Share of right readings by attribute of pictures [B, 3, 64, 64] that show the scenes of `batch`."""
    return agreement({k: v.cpu() for k, v in reader.read(images).items()}, targets_of(batch, "cpu"))
