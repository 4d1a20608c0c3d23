"""Loading what is evaluated, with this clone's code: nothing that lies in an exported folder is executed."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn
from transformers import CLIPVisionModel

from data.world.render import SIDE
from eval.harness.options import Dtype
from eval.harness.precision import export_dtype, guided_dtype
from models.backbone import Backbone, named_in_errors
from models.clip import ClipPixels, ImageTokens
from models.components import left_out
from models.options import Into
from models.turboedit_pipeline import TurboEditPipeline
from models.value_mapper import AmortisedMapper
from models.weight_files import only_variant

_ENCODER_PIPELINE = "TurboEditPipeline"
_LIBRARIES = ("diffusers", "transformers")


_READ = ["*.json", "*.safetensors", "*.txt", "*.md"]
"""Patterns of what is read of an export on the hub; not its code."""


def export_folder(name: str | Path) -> Path:
    """The folder of an export that is named by its folder or by its hub id, which is fetched into the hub's cache.

    Raises:
        OSError: it is neither a folder nor can it be had from the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    with named_in_errors(str(name)):
        return Path(snapshot_download(str(name), allow_patterns=_READ))


def load_scene_backbone(
    path: str | Path, device: torch.device, dtype: Dtype = "float32", variant: str | None = None
) -> Backbone:
    """The text-to-image model of a folder or hub id, from files of a variant such as "fp16" where one is named.

    Raises ValueError if its pictures are not of the scenes' size.
    """
    path = str(path)
    _check_side(path, image_side(path))
    return Backbone.load(path, device=device, dtype=guided_dtype(dtype, path, device), variant=variant)


def image_side(path: str) -> int:
    """Side in pixels of a pipeline's pictures, by the configs of a folder or hub id alone: nothing large is loaded."""
    with named_in_errors(path):
        return Backbone.outline(path).image_size


def _check_side(path: str | Path, side: int) -> None:
    if side != SIDE:
        raise ValueError(f"{path} makes {side} px images; scenes have {SIDE} px")


def read_index(folder: str | Path, class_name: str) -> dict[str, Any]:
    """model_index.json of an export (made by train.export) whose pipeline is `class_name`; ValueError for another."""
    entries = _read_entries(folder)
    if class_name not in _classes(entries):
        raise ValueError(
            f"{folder} holds a {entries.get('_class_name')}, expected the {class_name} of an exported encoder"
        )
    return entries


def _read_entries(folder: str | Path) -> dict[str, Any]:
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} is not an exported encoder: it has no {index.name}; make one with train.export")
    return json.loads(index.read_text(encoding="utf-8"))


def _classes(entries: dict[str, Any]) -> list[str]:
    """The pipeline's class, by diffusers' name or with that of the file that defines it."""
    name = entries.get("_class_name")
    return [name] if isinstance(name, str) else name or []


def names_pipeline(name: str | Path, class_name: str) -> bool:
    """Whether an export, a folder or hub id, is one of a pipeline class.

    Raises:
        ValueError: it is no export of any pipeline.
    """
    return class_name in _classes(_read_entries(export_folder(name)))


def generator_place(name: str | Path) -> str:
    """Folder or hub id of the pipeline with the generator of an encoder's export: its base, if it is an encoder alone.

    Raises:
        ValueError: `name` is no export of an encoder.
    """
    return read_index(export_folder(name), _ENCODER_PIPELINE).get("base") or str(name)


def load_encoder(name: str | Path, device: torch.device | str = "cpu", dtype: Dtype = "float32") -> TurboEditPipeline:
    """The pipeline of an export (made by train.export) by folder or hub id, silent, on `device`.

    The VAE is loaded in float32, everything else in `dtype`; what an encoder alone lacks comes from its base. Where an
    export was saved again as a variant, and has no plain files, the variant is read.

    Raises ValueError if it is no such folder.
    """
    folder = export_folder(name)
    entries = read_index(folder, _ENCODER_PIPELINE)
    precision = export_dtype(dtype, folder, device)
    base, base_variant = entries.pop("base", None), entries.pop("base_variant", None)
    variant = only_variant(folder)
    parts: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, list) and not key.startswith("_"):
            parts[key] = _load_part(folder, key, value, torch.float32 if key == "vae" else precision, variant)
        elif not key.startswith("_"):
            parts[key] = value
    if base is not None:
        parts |= _load_generator(base, base_variant, precision)
    pipeline = TurboEditPipeline(**parts).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_scene_encoder(name: str | Path, device: torch.device, dtype: Dtype = "float32") -> TurboEditPipeline:
    """Load an export whose pictures are of the scenes' size.

    Raises:
        ValueError: The folder is no export, or its generator makes pictures of another size.
    """
    folder = export_folder(name)
    _check_side(f"the generator of {name}", image_side(generator_place(folder)))
    return load_encoder(folder, device, dtype)


def _load_part(folder: Path, name: str, entry: list[str | None], dtype: torch.dtype, variant: str | None) -> Any:
    """A component as `model_index.json` names it, [library, class]; None for one that the pipeline does without."""
    library, class_name = entry
    if library is None or class_name is None:
        return None
    if library not in _LIBRARIES:
        raise ValueError(f"{folder} takes its {name} from {library!r}; expected a class of {' or '.join(_LIBRARIES)}")
    kind = getattr(importlib.import_module(library), class_name)
    options: dict[str, Any] = {"torch_dtype": dtype, "variant": variant} if issubclass(kind, nn.Module) else {}
    part = kind.from_pretrained(folder / name, **options)
    return part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part


def _load_generator(path: str, variant: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """The components of the pipeline, a folder or hub id, to which an export of an encoder alone points."""
    wanted: Any = {"vae": torch.float32, "default": dtype}
    with named_in_errors(path):
        variant = variant or only_variant(path)
        found = DiffusionPipeline.from_pretrained(
            path, variant=variant, torch_dtype=wanted, **left_out(path)
        ).components
    parts = {name: found.get(name) for name in TurboEditPipeline._optional_components}
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return parts


_MAPPER_PIPELINE = "StyleDiffusionPipeline"


@dataclass(frozen=True)
class ExportedMapper:
    """An amortised mapping network, the image tokens that it takes, and the sampling for which it was trained."""

    mapper: nn.Module
    tokens: ImageTokens
    num_steps: int
    steps_offset: int
    guidance: float
    into: Into

    def check(self, num_steps: int, guidance: float, steps_offset: int = 1) -> None:
        """Raises ValueError if it was trained for other steps or another guidance."""
        if self.steps_offset != steps_offset:
            raise ValueError(
                f"the mapping network was trained for steps with an offset of {self.steps_offset}, the evaluation has "
                f"{steps_offset}; train it on shards of data.encode --steps-offset {steps_offset}"
            )
        if (self.num_steps, self.guidance) != (num_steps, guidance):
            raise ValueError(
                f"the mapping network was trained for {self.num_steps} steps at guidance {self.guidance:g}, the "
                f"evaluation has {num_steps} at {guidance:g}; give --num_steps {self.num_steps} --guidance "
                f"{self.guidance:g}, or another export"
            )


def load_mapper(name: str | Path, device: torch.device | str = "cpu") -> ExportedMapper:
    """The network of an export (made by train.export of a train.stylediffusion run) by folder or hub id, in float32.

    Raises ValueError if it is no such folder.
    """
    folder = export_folder(name)
    entries = read_index(folder, _MAPPER_PIPELINE)
    variant = only_variant(folder)
    mapper = AmortisedMapper.from_pretrained(folder / "mapper", torch_dtype=torch.float32, variant=variant)
    vision = CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32, variant=variant)
    pixels = ClipPixels(vision.config.image_size, tuple(entries["image_mean"]), tuple(entries["image_std"]))
    return ExportedMapper(
        mapper.to(device).eval().requires_grad_(False),
        ImageTokens(vision.to(device), pixels),
        entries["num_steps"],
        entries["steps_offset"],
        entries["guidance"],
        entries.get("into", "values"),  # exports of before the option have none
    )


PUBLISHED_STEPS = (1, 2, 4)
"""The numbers of steps in table 2 of TurboEdit's paper."""


def checked_steps(pipeline: TurboEditPipeline, steps: Sequence[int] | None) -> tuple[int, ...]:
    """`steps` in ascending order; None for those of PUBLISHED_STEPS that the encoder has, or else for all of its own.

    Raises ValueError for a number of steps on whose timesteps the encoder was not trained.
    """
    if steps is None:
        return tuple(n for n in PUBLISHED_STEPS if n in pipeline.step_counts) or (len(pipeline.timesteps),)
    if not steps:
        raise ValueError("steps is empty; expected numbers of steps such as [1, 2, 4]")
    for count in steps:
        pipeline.timesteps_of(count)
    return tuple(sorted(set(steps)))


def with_steps(pipeline: TurboEditPipeline, steps: int) -> TurboEditPipeline:
    """`pipeline` on `steps` of its timesteps, evenly spread from the noisiest (999, 499); weights are shared."""
    shorter = TurboEditPipeline(
        **pipeline.components,
        timesteps=" ".join(map(str, pipeline.timesteps_of(steps))),
        attention_resolution=pipeline.config.attention_resolution,
        size_conditioning=pipeline.config.size_conditioning,
    )
    shorter.set_progress_bar_config(disable=True)
    return shorter
