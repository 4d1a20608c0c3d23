"""Today's instruction editors (FLUX.2-klein, FLUX.1-Kontext, Qwen-Image-Edit) by diffusers' own pipelines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.instruct_pix2pix import InstructState
from eval.editors.randomness import image_keys, image_seed
from eval.harness.fingerprints import network_fingerprint
from models.backbone import freeze
from models.pictures import from_picture, to_uint8
from models.weight_files import only_variant


@dataclass(frozen=True)
class Calling:
    """How a pipeline is called.

    Args:
        steps: number of its steps.
        options: other arguments.
        sized: whether it has to be told the picture's sides to keep their ratio.
    """

    steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    sized: bool = False


CALLINGS = {
    "Flux2KleinPipeline": Calling(4, {"guidance_scale": 1.0}),
    "FluxKontextPipeline": Calling(28, {"guidance_scale": 2.5}, sized=True),
    "QwenImageEditPipeline": Calling(50, {"true_cfg_scale": 4.0, "negative_prompt": " "}),
    "QwenImageEditPlusPipeline": Calling(50, {"true_cfg_scale": 4.0, "negative_prompt": " "}),
}
"""By the pipeline's class: its own defaults, guidance as in diffusers' examples; of klein the distilled form."""

BASE_KLEIN = Calling(50, {"guidance_scale": 4.0})
"""The pipeline's defaults, for FLUX.2-klein before distillation."""

LIGHTNING = Calling(4, {"true_cfg_scale": 1.0})
"""Qwen-Image-Lightning: no guidance; four steps, or eight by another LoRA."""

LIGHTNING_SCHEDULE = {
    "base_shift": math.log(3),
    "max_shift": math.log(3),
    "shift": 1.0,
    "shift_terminal": None,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
"""A shift of 3 at every size, as in distillation (ModelTC/Qwen-Image-Lightning 342260e, generate_with_diffusers.py)."""


def follows_instructions(path: str) -> bool:
    """Whether a folder or hub id is a pipeline of the table."""
    if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
        return False
    return DiffusionPipeline.load_config(path)["_class_name"] in CALLINGS


class InstructionEditor:
    """An order in words and the picture, through a pipeline that was trained for both; nothing is inverted.

    The pipeline chooses the size at which it works, about a million pixels of Kontext and Qwen; what it gives is
    resized to the picture's size. Descriptions are not looked at, and there is no strength.

    Args:
        path: folder or hub id of a pipeline of `CALLINGS`.
        device, dtype: device and type of its networks.
        name: name of the row.
        lora: file of a LoRA that is fused into the network; of Qwen's pipelines it is taken for a Lightning one.
        steps: number of steps in the place of the table's.

    Raises:
        ValueError: a pipeline of another class, or a LoRA that is no file.
    """

    strengths: ClassVar[tuple[float, ...]] = (1.0,)

    def __init__(
        self,
        path: str,
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        name: str,
        lora: str | None = None,
        steps: int | None = None,
    ) -> None:
        kind = DiffusionPipeline.load_config(path)["_class_name"]
        if kind not in CALLINGS:
            raise ValueError(f"{path} is a {kind}; expected one of {', '.join(CALLINGS)}")
        self.pipeline = DiffusionPipeline.from_pretrained(
            path, torch_dtype=dtype, variant=variant or only_variant(path)
        )
        calling = CALLINGS[kind]
        if kind == "Flux2KleinPipeline" and not self.pipeline.config.is_distilled:
            calling = BASE_KLEIN
        if lora is not None:
            _fuse(self.pipeline, lora)
            if kind.startswith("Qwen"):
                calling = LIGHTNING
                self.pipeline.scheduler = lightning_scheduler(self.pipeline.scheduler)
        self.pipeline.to(device).set_progress_bar_config(disable=True)
        self.name = name
        self.calling = calling
        self.num_steps = steps or calling.steps
        self.networks = (freeze(self.pipeline.transformer),)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits."""
        networks = self.pipeline.components.values()
        return {
            "networks": [network_fingerprint(part) for part in networks if isinstance(part, nn.Module)],
            "num_steps": self.num_steps,
            "options": dict(self.calling.options),
            "scheduler": {key: value for key, value in self.pipeline.scheduler.config.items() if key[0] != "_"},
            "noise_name": self.name,
        }

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The images alone: the pipeline encodes them."""
        return InvertedImages(tuple(prompts), {}, InstructState(images, image_keys(images)))

    @torch.no_grad()
    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """One call for each image; a pipeline takes several for as many references of one edit.

        Raises:
            ValueError: the request has no instruction.
        """
        if request.instruction is None:
            raise ValueError(f"{self.name} follows orders only; give EditRequest.instruction, one for each image")
        state: InstructState = inversion.state
        pictures = to_uint8(state.images).permute(0, 2, 3, 1).cpu().numpy()
        edited = [
            self._edit(Image.fromarray(picture), order, image_seed(key, self.name, request.seed))
            for picture, order, key in zip(pictures, request.instruction, state.keys, strict=True)
        ]
        sides = state.images.shape[-2:]
        return torch.cat([_of_size(picture, sides) for picture in edited]).to(state.images.device)

    def _edit(self, picture: Image.Image, order: str, seed: int) -> Tensor:
        """The edited picture [1, 3, H, W] in [-1, 1] at the pipeline's size."""
        sides = {"height": picture.height, "width": picture.width} if self.calling.sized else {}
        found = self.pipeline(
            image=picture,
            prompt=order,
            num_inference_steps=self.num_steps,
            generator=torch.Generator().manual_seed(seed),
            **self.calling.options,
            **sides,
        ).images[0]
        return from_picture(found.convert("RGB"))[None]


def lightning_scheduler(scheduler: FlowMatchEulerDiscreteScheduler) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler with which Lightning was distilled."""
    return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, **LIGHTNING_SCHEDULE)


def _fuse(pipeline: DiffusionPipeline, lora: str) -> None:
    file = Path(lora)
    if not file.is_file():
        raise ValueError(f"the LoRA {lora} is no file; give the .safetensors file of it")
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _of_size(image: Tensor, sides: Sequence[int]) -> Tensor:
    """An image [1, 3, H, W] at the given height and width."""
    if tuple(image.shape[-2:]) == tuple(sides):
        return image
    return F.interpolate(image, tuple(sides), mode="bicubic", antialias=True).clamp(-1, 1)
