"""Three nodes: load an export, invert pictures, edit them; strength and mask are inputs of the last one.

ComfyUI keeps what a node gave for as long as its inputs stay the same. The pipeline and the inversion are outputs, so
that a strength that moves neither loads nor inverts again. ComfyUI's IMAGE is a tensor [B, H, W, 3] and its MASK a
tensor [B, H, W], both in [0, 1].
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_MENU = "image/TurboEdit"
_PIPELINE = "TURBOEDIT_PIPELINE"
_INVERSION = "TURBOEDIT_INVERSION"
_EXPECTED = "TurboEditPipeline"

InputTypes = dict[str, dict[str, tuple[Any, ...]]]
"""Inputs of a node by "required" and "optional" and by name: type and options, as ComfyUI reads them."""


@dataclass(frozen=True)
class InvertedPictures:
    """InvertedPictures pictures as they go from node to node.

    Args:
        pipeline: The pipeline that made the inversion, and edits it.
        photographs: The B pictures in full size.
        inversion: What the pipeline's `invert` or `edit` gave.
    """

    pipeline: Any
    photographs: list[Image.Image]
    inversion: Any


class TurboEditLoad:
    """Loads an export."""

    DESCRIPTION = "Loads an export of TurboEdit, a folder or a hub id, once for all nodes that take it."
    CATEGORY = _MENU
    RETURN_TYPES = (_PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    OUTPUT_TOOLTIPS = ("The encoder with its generator.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The export, and where and in which dtype it computes."""
        export = (
            "Folder that train.export wrote, or its hub id (USER/NAME). It brings the pipeline's code, which is run: "
            "take exports from people whom you trust."
        )
        device = (
            "auto: the GPU, or the CPU where there is none. offload: one large network at a time on the GPU, slower, "
            "with a third of the memory."
        )
        return {
            "required": {
                "export": ("STRING", {"default": "", "placeholder": "folder or USER/NAME", "tooltip": export}),
                "device": (["auto", "offload", "cpu"], {"default": "auto", "tooltip": device}),
                "dtype": (
                    ["auto", "float16", "bfloat16", "float32"],
                    {"default": "auto", "tooltip": "auto: float16 on a GPU, float32 on a CPU."},
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, export: str | None) -> bool | str:
        """Whether `export` can be one, before anything is run; a text says why not. None comes from another node."""
        return True if export is None else _complaint(export) or True

    @classmethod
    def IS_CHANGED(cls, export: str | None, **others: Any) -> str:
        """What changes when the same folder holds another export, which is loaded again then."""
        index = _folder(export or "") / "model_index.json"
        return str(index.stat().st_mtime_ns) if index.is_file() else ""

    def load(self, export: str, device: str, dtype: str) -> tuple[Any]:
        """The pipeline of an export.

        Raises:
            ValueError: There is no export, it is of another method, or no GPU to offload from.
            RuntimeError: diffusers is not installed.
        """
        if (problem := _complaint(export)) is not None:
            raise ValueError(problem)
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise RuntimeError(
                "diffusers is missing in ComfyUI's Python: pip install -r requirements.txt in the folder of this pack"
            ) from error
        folder = _folder(export)
        place = str(folder) if folder.is_dir() else export.strip()
        named = DiffusionPipeline.load_config(place)["_class_name"]
        if (found := named if isinstance(named, str) else named[-1]) != _EXPECTED:
            raise ValueError(f"{place} holds a {found}; expected the {_EXPECTED} of a TurboEdit export")
        gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if device == "offload" and gpu is None:
            raise ValueError("device is 'offload', but torch finds no GPU here; choose auto or cpu")
        chosen = torch.device("cpu") if device == "cpu" or gpu is None else gpu
        stored = ("float32" if chosen.type == "cpu" else "float16") if dtype == "auto" else dtype
        with torch.inference_mode(False):  # ComfyUI's mode, in which weights would be tensors that nothing else takes
            pipeline = DiffusionPipeline.from_pretrained(
                place, torch_dtype=getattr(torch, stored), trust_remote_code=True
            )
            if device == "offload":
                pipeline.enable_model_cpu_offload(device=chosen)
            else:
                pipeline.to(chosen)
        return (pipeline,)


class TurboEditInvert:
    """Inverts pictures."""

    DESCRIPTION = "Finds the noise from which the generator makes the picture again. It is done once for all edits."
    CATEGORY = _MENU
    RETURN_TYPES = (_INVERSION, "IMAGE")
    RETURN_NAMES = ("inversion", "reconstruction")
    OUTPUT_TOOLTIPS = (
        "The picture as the edits start from it.",
        "What the generator makes of the noise, in its own size: what an edit in the paper's form starts from.",
    )
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The pipeline, pictures, their description and the number of steps."""
        prompt = "What the picture shows, in as many words as the encoder was trained on. Edits start from this text."
        steps = "Fewer of the encoder's steps are faster and less exact; 0 takes all."
        return {
            "required": {
                "pipeline": (_PIPELINE, {"tooltip": "From Load TurboEdit export."}),
                "image": ("IMAGE", {"tooltip": "Pictures of any shape; those of one batch have one description."}),
                "prompt": ("STRING", {"multiline": True, "default": "", "tooltip": prompt}),
                "num_steps": ("INT", {"default": 0, "min": 0, "max": 50, "tooltip": steps}),
            }
        }

    def invert(self, pipeline: Any, image: Tensor, prompt: str, num_steps: int) -> tuple[InvertedPictures, Tensor]:
        """The inversion of pictures [B, H, W, 3], and what the generator makes of it, [B, h, w, 3].

        Raises:
            ValueError: No description, what are no pictures, or a number of steps that the encoder does not know.
        """
        _check_described(prompt)
        photographs = _as_pictures(image)
        inversion = pipeline.invert(photographs, prompt, num_steps or None)
        reconstruction = pipeline.decode(inversion.reconstructions[-1])
        return InvertedPictures(pipeline, photographs, inversion), _as_image(reconstruction)


class TurboEditEdit:
    """Edits inverted pictures."""

    DESCRIPTION = "Edits an inverted picture by another description; the result has the picture's own size."
    CATEGORY = _MENU
    RETURN_TYPES = ("IMAGE", "MASK", _INVERSION)
    RETURN_NAMES = ("image", "mask", "inversion")
    OUTPUT_TOOLTIPS = (
        "The edit. With a mask every pixel outside of it is the picture's own.",
        "Where the picture could change, in the edit's size.",
        "The edit as the start of a further one.",
    )
    FUNCTION = "edit"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inversion, the edit's description with its strength, and where the picture may change."""
        automatic = (
            "Finds where the picture has to change: prediction compares the generator's first estimates under both "
            "texts and costs nothing, noise compares the encoder's, attention looks for the words that differ."
        )
        threshold = "Share of its strongest place above which an automatic mask lets the picture change."
        also = "Further edits at the same time, one a line with its strength: a cat on a sofa at night = 0.5"
        mask = "White may change. A painted mask, in the picture's shape, in the place of an automatic one."
        strength = "How far to go from the picture's description (0) to this one (1). Below 0 and above 1 go on."
        return {
            "required": {
                "inversion": (_INVERSION, {"tooltip": "From Invert picture, or from another edit."}),
                "prompt": (
                    "STRING",
                    {"multiline": True, "default": "", "tooltip": "The picture's description with what should change."},
                ),
                "strength": ("FLOAT", {"default": 1.0, "min": -1.0, "max": 3.0, "step": 0.05, "tooltip": strength}),
                "automatic_mask": (
                    ["none", "prediction", "noise", "attention"],
                    {"default": "none", "tooltip": automatic},
                ),
                "threshold": ("FLOAT", {"default": 0.4, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": threshold}),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": mask}),
                "also": ("STRING", {"multiline": True, "default": "", "tooltip": also}),
            },
        }

    def edit(
        self,
        inversion: InvertedPictures,
        prompt: str,
        strength: float,
        automatic_mask: str,
        threshold: float,
        mask: Tensor | None = None,
        also: str = "",
    ) -> tuple[Tensor, Tensor, InvertedPictures]:
        """The edited pictures [R, H, W, 3], where they could change [R, H, W], and the start of a further edit.

        Raises:
            ValueError: No description, `also` without strengths, two masks at once, an empty mask, or one of another
                aspect.
        """
        _check_described(prompt)
        drawn = None if mask is None else _as_masks(mask)
        if drawn is not None and automatic_mask != "none":
            raise ValueError(f"a mask is connected and automatic_mask is {automatic_mask!r}; expected one of both")
        wishes: Any = (prompt, strength) if not also.strip() else ({prompt: strength} | _further(also, prompt),)
        where = (None if automatic_mask == "none" else automatic_mask) if drawn is None else drawn
        output = inversion.pipeline.edit(inversion.inversion, *wishes, mask=where, threshold=threshold)
        # An edit in white on black shows by how much each pixel could change.
        white = [Image.new("RGB", picture.size, "white") for picture in output.images]
        black = [Image.new("RGB", picture.size) for picture in inversion.photographs]
        edited = output.at_full_size(inversion.photographs, drawn)
        changed = _as_image(replace(output, images=white).at_full_size(black, drawn))[..., 0]
        whole = _laid_on(inversion.photographs, edited, output)
        return _as_image(edited), changed, InvertedPictures(inversion.pipeline, whole, output.inversion)


def _folder(export: str) -> Path:
    return Path(export.strip()).expanduser()


def _complaint(export: str) -> str | None:
    """What keeps a text from being the folder or the hub id of an export."""
    name, folder = export.strip(), _folder(export)
    if not name:
        return "export is empty; give the folder that train.export wrote, or its hub id (USER/NAME)"
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        return f"{folder} is no export: it has no model_index.json; give the folder that train.export wrote"
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return f"there is no folder {folder}, and a hub id has the form USER/NAME"
    return None


def _check_described(prompt: str) -> None:
    if not prompt.strip():
        raise ValueError("prompt is empty; expected a description of the picture as it is, or as it should be")


def _further(also: str, prompt: str) -> dict[str, float]:
    """Strengths of further edits by their descriptions, of lines such as "a cat at night = 0.5".

    Raises:
        ValueError: A line of another form, or a description that is there twice.
    """
    found: dict[str, float] = {}
    for line in filter(None, map(str.strip, also.splitlines())):
        text, _, number = (part.strip() for part in line.rpartition("="))
        try:
            strength = float(number)
        except ValueError:
            text = ""
        if not text:
            raise ValueError(f"also has the line {line!r}; expected a description, = and a strength, such as ... = 0.5")
        if text in (prompt, *found):
            raise ValueError(f"{text!r} is there twice in prompt and also; expected each description once")
        found[text] = strength
    return found


def _as_pictures(image: Tensor) -> list[Image.Image]:
    """Pictures of an IMAGE. Raises ValueError for what is none."""
    if image.ndim != 4 or image.shape[-1] != 3:
        raise ValueError(f"image has shape {list(image.shape)}; expected a batch of RGB pictures, [B, H, W, 3]")
    return [Image.fromarray(levels) for levels in _levels(image)]


def _as_masks(mask: Tensor) -> list[Image.Image]:
    """Pictures of a MASK [B, H, W] or [H, W]. Raises ValueError for what is none, and for an empty one."""
    masks = mask[None] if mask.ndim == 2 else mask
    if masks.ndim != 3:
        raise ValueError(f"mask has shape {list(mask.shape)}; expected [B, H, W]")
    if not masks.any():
        raise ValueError(
            "the mask is empty, so nothing could change: paint one in the mask editor of the picture's node, or "
            "disconnect it"
        )
    return [Image.fromarray(levels) for levels in _levels(masks)]


def _levels(values: Tensor) -> np.ndarray:
    """Levels of 0 to 255 of values in [0, 1], in the same shape."""
    return (values.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _as_image(pictures: Sequence[Image.Image]) -> Tensor:
    """An IMAGE [B, H, W, 3] of pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255


def _laid_on(photographs: list[Image.Image], edited: list[Image.Image], output: Any) -> list[Image.Image]:
    """Edits of the photographs' sizes: one without a mask, which shows the part that was seen, laid on the rest."""
    each = photographs * (len(edited) // len(photographs))
    whole = []
    for photograph, picture, cutout in zip(each, edited, output.inversion.cutouts, strict=True):
        laid = photograph.copy()
        laid.paste(picture, (0, 0) if picture.size == photograph.size else cutout.crop[:2])
        whole.append(laid)
    return whole
