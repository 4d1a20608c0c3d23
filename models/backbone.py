"""A frozen text-to-image model of the Stable Diffusion family, loaded from any diffusers folder or hub id.

Every part is the stock diffusers or transformers class; this file only freezes them and speaks the project's words
(image, latent, prompt, t).
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .schedule import NoiseSchedule
from .text import ClipText, DualClipText, Prompt

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


def fingerprint(module: nn.Module, config: dict[str, Any]) -> str:
    """Sixteen hex digits that change with the configuration or the weights, the same in every dtype that holds bf16."""
    digest = hashlib.sha256()
    public = {key: value for key, value in sorted(config.items()) if not key.startswith("_")}
    digest.update(json.dumps(public, sort_keys=True, default=str).encode())
    for name, weight in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


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
            variant: file variant on the hub, such as "fp16".

        Raises:
            ValueError: the folder is not a Stable Diffusion or SDXL pipeline, or the VAE would overflow in float16.
        """
        if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
            raise ValueError(f"{path} is not a pipeline folder: it has no model_index.json; give a diffusers pipeline")
        index = DiffusionPipeline.load_config(path)
        missing = [name for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler") if name not in index]
        if missing:
            raise ValueError(
                f"{path} is not a Stable Diffusion pipeline: its model_index.json names no {', '.join(missing)}"
            )

        def read(kind: Any, name: str, dtype: torch.dtype) -> Any:
            module = kind.from_pretrained(path, subfolder=name, torch_dtype=dtype, variant=variant)
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
            text = ClipText(
                CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"), read(CLIPTextModel, "text_encoder", dtype)
            )
        elif "text" in parts:
            text = DualClipText(
                [CLIPTokenizer.from_pretrained(path, subfolder=name) for name in ("tokenizer", "tokenizer_2")],
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
    def vae_fingerprint(self) -> str:
        """Identifies the VAE whose latents these are."""
        vae = _loaded(self.vae, "vae")
        return fingerprint(vae, dict(vae.config))

    @property
    def text_fingerprint(self) -> str:
        """Identifies the text encoders whose embeddings these are."""
        encoders = _loaded(self.text, "text").encoders
        # transformers notes in the config in which dtype a model was loaded; that does not make it another one.
        return " ".join(fingerprint(x, {**x.config.to_dict(), "dtype": "float32"}) for x in encoders)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images for which the UNet was made."""
        levels = len(_loaded(self.vae, "vae").config.block_out_channels)
        return _loaded(self.unet, "unet").config.sample_size * 2 ** (levels - 1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], size: int | None = None, device: torch.device | None = None) -> Prompt:
        """Prompt embeddings of `texts` [B].

        Args:
            size: the image's side in pixels for SDXL's micro-conditioning.
            device: where the text encoders run, if hooks move their weights there for the call alone.
        """
        return _loaded(self.text, "text")(texts, size or self.image_size, device)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Scaled posterior mean [B, 4, h, w] in float32 of `image` [B, 3, H, W] in [-1, 1]."""
        vae = _loaded(self.vae, "vae")
        latent = vae.encode(image.to(vae.dtype)).latent_dist.mode()
        return (latent.float() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Image [B, 3, H, W] in about [-1, 1], float32, of a scaled `latent` [B, 4, h, w]; differentiable."""
        vae = _loaded(self.vae, "vae")
        return vae.decode(self.unscale(latent).to(vae.dtype)).sample.float()

    def unscale(self, latent: Tensor) -> Tensor:
        """The latent [B, 4, h, w] as the VAE itself gives and takes it, of a scaled one."""
        vae = _loaded(self.vae, "vae")
        return latent / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)

    def predict(self, x_t: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """The UNet's raw output [B, 4, h, w] in float32 at `x_t` [B, 4, h, w], t [B]; differentiable."""
        unet = _loaded(self.unet, "unet")
        dtype = unet.dtype  # diffusers walks through all modules to find it
        return unet(x_t.to(dtype), t, **prompt.to(dtype=dtype).unet_inputs()).sample.float()


def _loaded(part: Any, name: str) -> Any:
    """`part`, or ValueError if it was left out of `Backbone.load`."""
    if part is None:
        raise ValueError(f"this needs the backbone's {name}, which was not loaded; add {name!r} to the parts")
    return part
