"""Loading what is evaluated, with this clone's code: nothing that lies in an exported folder is executed."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.jobs.sharing import Ranks
from data.scenes import SIDE
from models.backbone import Backbone
from models.turboedit_pipeline import TurboEditPipeline

_CLASS = "TurboEditPipeline"
_LIBRARIES = ("diffusers", "transformers")


def choose_device(name: str) -> torch.device:
    """A torch device by name; "auto" is CUDA where there is one, a GPU of its own for each of several processes."""
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", Ranks.local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def load_scene_backbone(path: str | Path, device: torch.device) -> Backbone:
    """The text-to-image model of a folder in float32. Raises ValueError if its pictures are not of the scenes' size."""
    backbone = Backbone.load(str(path), device=device)
    if backbone.image_size != SIDE:
        raise ValueError(f"{path} makes {backbone.image_size} px images; scenes have {SIDE} px")
    return backbone


def read_index(folder: str | Path, class_name: str) -> dict[str, Any]:
    """model_index.json of an export (made by train.export) whose pipeline is `class_name`; ValueError for another."""
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} is not an exported encoder: it has no {index.name}; make one with train.export")
    entries: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    name = entries.get("_class_name")
    if class_name not in ([name] if isinstance(name, str) else name or []):
        raise ValueError(f"{folder} holds a {name}, expected the {class_name} of an exported encoder")
    return entries


def load_encoder(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TurboEditPipeline:
    """The pipeline of an export folder (made by train.export), silent, on `device`.

    The VAE is loaded in float32, everything else in `dtype`.

    Raises ValueError if it is no such folder.
    """
    entries = read_index(folder, _CLASS)
    parts: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, list) and not key.startswith("_"):
            parts[key] = _load_part(Path(folder), key, value, torch.float32 if key == "vae" else dtype)
        elif not key.startswith("_"):
            parts[key] = value
    pipeline = TurboEditPipeline(**parts).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_part(folder: Path, name: str, entry: list[str | None], dtype: torch.dtype) -> Any:
    """A component as `model_index.json` names it, [library, class]; None for one that the pipeline does without."""
    library, class_name = entry
    if library is None or class_name is None:
        return None
    if library not in _LIBRARIES:
        raise ValueError(f"{folder} takes its {name} from {library!r}; expected a class of {' or '.join(_LIBRARIES)}")
    kind = getattr(importlib.import_module(library), class_name)
    options = {"torch_dtype": dtype} if issubclass(kind, nn.Module) else {}
    part = kind.from_pretrained(folder / name, **options)
    return part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part
