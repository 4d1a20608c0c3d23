"""InstructPix2Pix (Brooks et al. 2023) and its likes (MagicBrush, HQ-Edit) by diffusers' own pipelines."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)
from torch import Tensor, nn

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.randomness import image_keys, image_seed
from eval.harness.fingerprints import network_fingerprint
from models.backbone import freeze
from models.weight_files import only_variant

WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@dataclass(frozen=True)
class InstructState:
    """The images [B, 3, H, W] and the keys of their noise."""

    images: Tensor
    keys: tuple[int, ...]


class InstructPix2Pix:
    """An order instead of a description: guidance by the words and by the image, sampled by Euler-ancestral.

    eps = eps(0, 0) + s_I (eps(image, 0) - eps(0, 0)) + s_T (eps(image, words) - eps(image, 0))

    Strength is s_I, 1.5 by default: the higher, the less is changed. Nothing is inverted; descriptions are not looked
    at.

    Args:
        path: folder or hub id of such a pipeline, "timbrooks/instruct-pix2pix" for instance; SDXL's where its index
            names a second text encoder. It has a UNet of its own, which is what is counted.
        device, dtype: device and type of all its networks.
        variant: file variant, such as "fp16"; without it that of a folder that has no plain files.
        name: name of the row; by default the folder's, in small letters and with underscores.
        num_steps: 100 in the paper, 50 in PIE-Bench's runner.
        guidance: s_T.

    Raises:
        ValueError: no pipeline, no files of the variant, a UNet that takes no image, or guidance that the pipeline
            would leave out.
    """

    strengths: tuple[float, ...] = (2.2, 1.8, 1.5, 1.2)

    def __init__(
        self,
        path: str,
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        name: str | None = None,
        num_steps: int = 100,
        guidance: float = 7.5,
    ) -> None:
        _check_guidance(guidance)
        self.pipeline = _pipeline(path, dtype, variant).to(device)
        self.noise_name = self.name = name or Path(path).name.lower().replace("-", "_")
        self.num_steps = num_steps
        self.guidance = guidance
        self.unet = freeze(self.pipeline.unet)
        self.networks = (self.unet,)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits."""
        networks = self.pipeline.components.values()
        return {
            "networks": [network_fingerprint(part) for part in networks if isinstance(part, nn.Module)],
            "num_steps": self.num_steps,
            "guidance": self.guidance,
            "noise_name": self.noise_name,
        }

    def swept(self, name: str, guidance: float, strengths: Sequence[float]) -> "InstructPix2Pix":
        """The same networks under another s_T, with a name and a sweep over s_I of its own, and the same noise."""
        _check_guidance(guidance)
        other = copy(self)
        other.name, other.guidance, other.strengths = name, guidance, tuple(strengths)
        return other

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The images alone: the pipeline encodes them."""
        return InvertedImages(tuple(prompts), {}, InstructState(images, image_keys(images)))

    @torch.no_grad()
    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Raises ValueError if the request has no instruction, or a strength below 1, which diffusers does not know."""
        if request.instruction is None:
            raise ValueError(f"{self.name} follows orders only; give EditRequest.instruction, one for each image")
        strength = 1.5 if request.strength is None else request.strength
        if strength < 1:
            raise ValueError(f"strength is {strength}; image guidance below 1 is none in diffusers' pipeline")
        state: InstructState = inversion.state
        found = self.pipeline(
            list(request.instruction),
            image=(state.images + 1) / 2,
            num_inference_steps=self.num_steps,
            guidance_scale=self.guidance,
            image_guidance_scale=strength,
            generator=[
                torch.Generator().manual_seed(image_seed(key, self.noise_name, request.seed)) for key in state.keys
            ],
            output_type="pt",
            **self._size(state.images),
        ).images
        return (found.float() * 2 - 1).clamp(-1, 1)

    def _size(self, images: Tensor) -> dict[str, int]:
        """SDXL's pipeline has to be told the size of the pictures."""
        if isinstance(self.pipeline, StableDiffusionXLInstructPix2PixPipeline):
            return {"height": images.shape[-2], "width": images.shape[-1]}
        return {}


def _check_guidance(guidance: float) -> None:
    if guidance <= 1:
        raise ValueError(f"guidance is {guidance}; diffusers' pipeline guides only above 1")


def _pipeline(
    path: str, dtype: torch.dtype, variant: str | None
) -> StableDiffusionInstructPix2PixPipeline | StableDiffusionXLInstructPix2PixPipeline:
    """The stock pipeline of a folder or hub id, silent and with Euler-ancestral steps."""
    if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
        raise ValueError(f"{path} is not a pipeline folder: it has no model_index.json; give a diffusers pipeline")
    if DiffusionPipeline.load_config(path).get("text_encoder_2", (None, None))[0] is None:
        kind, options = StableDiffusionInstructPix2PixPipeline, WITHOUT_CHECKER
    else:
        kind, options = StableDiffusionXLInstructPix2PixPipeline, {"add_watermarker": False}
    try:
        pipeline = kind.from_pretrained(path, torch_dtype=dtype, variant=variant or only_variant(path), **options)
    except (OSError, ValueError) as error:
        if variant is None:
            raise
        raise ValueError(
            f"{path} cannot be loaded in the file variant {variant!r} ({error}); set variant to one that its files "
            "have in their names, or leave it out"
        ) from error
    channels, expected = pipeline.unet.config.in_channels, 2 * pipeline.vae.config.latent_channels
    if channels != expected:
        raise ValueError(
            f"the UNet of {path} has {channels} input channels, expected {expected} for the latent and the image; give "
            "weights that were trained as InstructPix2Pix was"
        )
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
