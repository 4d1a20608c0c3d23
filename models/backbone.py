"""A frozen text-to-image model of the Stable Diffusion family, loaded from any diffusers folder or hub id.

Every part is the stock diffusers or transformers class; this file only freezes them and speaks the project's words
(image, latent, prompt, t).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .own_dtype import GradientScale, in_own_dtype
from .precision import without_autocast
from .schedule import NoiseSchedule
from .shapes import SizeConditioning, Sizes, side_multiple
from .text import ClipText, DualClipText, Prompt, load_tokenizer
from .weight_files import only_variant

logger = logging.getLogger(__name__)

PARTS = ("vae", "text", "unet")


@contextmanager
def named_in_errors(path: str) -> Iterator[None]:
    """Name the folder or hub id that is loaded in the block, where an OSError does not say it.

    Raises:
        OSError: with `path` before the message, in the place of one without it.
    """
    try:
        yield
    except OSError as error:
        if path in str(error):
            raise
        raise OSError(f"{path} cannot be loaded: {error}") from error


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode and no gradients to the weights; gradients still cross the module to its input."""
    return module.requires_grad_(False).eval()


def assert_frozen(module: nn.Module) -> None:
    """Raises AssertionError if a weight of `module` would be trained or if it is in training mode."""
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert not trained, f"frozen {type(module).__name__} has trainable weights: {trained[:3]}"
    assert not any(m.training for m in module.modules()), f"frozen {type(module).__name__} is in training mode"


def dtype_of(name: str) -> torch.dtype:
    """Dtype of torch for weights that a config names.

    Raises:
        ValueError: it is none of float32, bfloat16, float16.
    """
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {name}, expected float32, bfloat16 or float16")
    return getattr(torch, name)


def recast(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module weights of another dtype; also one without data, whose weights Module.to cannot exchange."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(weight.detach().to(dtype), weight.requires_grad))


class Backbone:
    """The frozen parts and what they do.

    Args:
        schedule: the noise schedule.
        vae, unet: diffusers models, or None where a part was not asked for.
        text: the text encoders, or None.
    """

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        vae: AutoencoderKL | None = None,
        unet: UNet2DConditionModel | None = None,
        text: ClipText | DualClipText | None = None,
    ) -> None:
        self.schedule = schedule
        self.vae: AutoencoderKL = vae
        self.unet: UNet2DConditionModel = unet
        self.text = text
        for module in self.modules():
            freeze(module)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
        unet_dtype: torch.dtype | None = None,
        parts: Sequence[str] = PARTS,
        variant: str | None = None,
    ) -> "Backbone":
        """Load the `parts` of a diffusers folder or hub id.

        Args:
            path: folder with `model_index.json`, or a hub id such as "stabilityai/sdxl-turbo"; HF_HUB_OFFLINE is
                respected.
            dtype: precision of the UNet and the text encoders; `vae_dtype`: precision of the VAE, float32 or bfloat16;
                `unet_dtype`: precision of the UNet where it is to have another.
            variant: file variant, such as "fp16"; without it that of a folder that has no plain files.

        Raises:
            ValueError: the folder is not a Stable Diffusion or SDXL pipeline, it has no files of the variant, or none
                without one and several variants, or the VAE would overflow in float16.
        """
        if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
            raise ValueError(f"{path} is not a pipeline folder: it has no model_index.json; give a diffusers pipeline")
        index = DiffusionPipeline.load_config(path)
        missing = [name for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler") if name not in index]
        if missing:
            raise ValueError(
                f"{path} is not a Stable Diffusion pipeline: its model_index.json names no {', '.join(missing)}"
            )
        variant = variant or only_variant(path)

        def read(kind: Any, name: str, dtype: torch.dtype) -> Any:
            try:
                module = kind.from_pretrained(path, subfolder=name, torch_dtype=dtype, variant=variant)
            except OSError as error:
                if variant is None:
                    raise
                raise ValueError(
                    f"the {name} of {path} cannot be loaded in the file variant {variant!r} ({error}); set variant to "
                    "one that its files have in their names, or leave it out"
                ) from error
            return module.to(device)

        schedule = NoiseSchedule.from_scheduler(DDPMScheduler.from_pretrained(path, subfolder="scheduler"))
        vae = unet = None
        text: ClipText | DualClipText | None = None
        if "vae" in parts:
            vae = read(AutoencoderKL, "vae", vae_dtype)
            if vae_dtype == torch.float16 and vae.config.force_upcast:
                raise ValueError(f"the VAE of {path} overflows in float16; use float32 or bfloat16 (vae_dtype)")
        if "unet" in parts:
            unet = read(UNet2DConditionModel, "unet", unet_dtype or dtype)
        if "text" in parts and index.get("text_encoder_2", (None, None))[0] is None:
            text = ClipText(load_tokenizer(path, "tokenizer"), read(CLIPTextModel, "text_encoder", dtype))
        elif "text" in parts:
            text = DualClipText(
                [load_tokenizer(path, name) for name in ("tokenizer", "tokenizer_2")],
                [
                    read(CLIPTextModel, "text_encoder", dtype),
                    read(CLIPTextModelWithProjection, "text_encoder_2", dtype),
                ],
            )
        return cls(schedule=schedule, vae=vae, unet=unet, text=text)

    def modules(self) -> list[nn.Module]:
        """The frozen networks that are loaded."""
        encoders = list(self.text.encoders) if self.text else []
        return [m for m in (self.vae, self.unet, *encoders) if m is not None]

    def assert_frozen(self) -> None:
        """Raises AssertionError if a loaded part is not frozen."""
        for module in self.modules():
            assert_frozen(module)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images for which the UNet was made."""
        own = _loaded(self.unet, "unet").config.sample_size
        return self.pixels((own, own))[0]

    def pixels(self, latent: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels of the pictures whose latents have a height and a width of `latent`."""
        factor = 2 ** (len(_loaded(self.vae, "vae").config.block_out_channels) - 1)
        return latent[0] * factor, latent[1] * factor

    @property
    def multiple(self) -> int:
        """What divides the sides of pictures in pixels: that of data's buckets (`side_multiple`).

        It is the VAE's factor times the UNet's, so that no level is odd, where that is larger.
        """
        levels = [len(_loaded(getattr(self, part), part).config.block_out_channels) for part in ("vae", "unet")]
        factor = 2 ** (sum(levels) - 2)
        return max(factor, side_multiple(self.image_size))

    @property
    def own_size(self) -> SizeConditioning:
        """Size of the square, uncropped pictures for which the UNet was made."""
        return SizeConditioning.uncropped(self.image_size, self.image_size)

    def size_of(self, latent: Tensor) -> SizeConditioning:
        """Size of uncropped pictures whose latents are [..., h, w]."""
        height, width = latent.shape[-2:]
        return SizeConditioning.uncropped(*self.pixels((height, width)))

    def map_size(self, side: int, latent: Tensor) -> tuple[int, int]:
        """Height and width of the attention maps of latents [..., h, w] at one of the UNet's resolutions.

        Args:
            side: side of the maps at that resolution for latents of the UNet's own size, which are squares.
        """
        own = _loaded(self.unet, "unet").config.sample_size
        height, width = (-(-length * side // own) for length in latent.shape[-2:])  # a UNet halves and rounds up
        return height, width

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], size: Sizes | None = None, device: torch.device | None = None
    ) -> Prompt:
        """Prompt embeddings of `texts` [B].

        Args:
            size: sizes of the picture(s) for SDXL's micro-conditioning, one for all or one for each text; by default
                the backbone's own square, uncropped.
            device: where the text encoders run, if hooks move their weights there for the call alone.
        """
        text = _loaded(self.text, "text")
        with without_autocast(device or text.encoders[0].device):
            return text(texts, size or self.own_size, device)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Scaled posterior mean [B, 4, h, w] in float32 of `image` [B, 3, H, W] in [-1, 1]."""
        vae = _loaded(self.vae, "vae")
        latent = in_own_dtype(lambda x, _: vae.encode(x).latent_dist.mode(), vae.dtype, image)
        return (latent - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Image [B, 3, H, W] in about [-1, 1], float32, of a scaled `latent` [B, 4, h, w]; differentiable."""
        vae = _loaded(self.vae, "vae")
        return in_own_dtype(lambda x, _: vae.decode(x).sample, vae.dtype, self.unscale(latent))

    def unscale(self, latent: Tensor) -> Tensor:
        """The latent [B, 4, h, w] as the VAE itself gives and takes it, of a scaled one."""
        vae = _loaded(self.vae, "vae")
        return latent / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)

    def predict(self, x_t: Tensor, prompt: Prompt, t: Tensor, scale: GradientScale | None = None) -> Tensor:
        """The UNet's raw output [B, 4, h, w] in float32 at `x_t` [B, 4, h, w], t [B]; differentiable.

        Args:
            scale: scale of the gradients where more enters or leaves a float16 UNet than x_t, prompt and output; the
                caller lets the output leave.
        """
        unet = _loaded(self.unet, "unet")

        def evaluate(x_t: Tensor, prompt: Any) -> Tensor:
            return unet(x_t, t, **prompt.unet_inputs()).sample

        return in_own_dtype(evaluate, self.unet_dtype, x_t, prompt, scale)

    def seen(self, x_t: Tensor) -> Tensor:
        """The latent [B, 4, h, w] as the UNet sees it: rounded to its dtype, in float32.

        Its output is about that one, so x0 and noise follow from that one: eq. 3 divides by 0.07 at t = 999.
        """
        return x_t.to(self.unet_dtype).float()

    @property
    def unet_dtype(self) -> torch.dtype:
        """The dtype in which the UNet computes, which is that of its norms however the other layers are stored.

        Its own property walks through all modules to find it, 19 ms for SDXL.
        """
        return _loaded(self.unet, "unet").conv_norm_out.weight.dtype


def _loaded(part: Any, name: str) -> Any:
    """`part`, or ValueError if it was left out of `Backbone.load`."""
    if part is None:
        raise ValueError(f"this needs the backbone's {name}, which was not loaded; add {name!r} to the parts")
    return part
