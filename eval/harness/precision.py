"""The dtype in which an evaluation loads a model, where the user leaves the choice to it."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from eval.harness.options import Dtype
from models.backbone import dtype_of, named_in_errors

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def export_dtype(dtype: Dtype, folder: Path, device: torch.device | str) -> torch.dtype:
    """The dtype of an export's encoder and UNet: the one that was asked for, or else by the device.

    On a CPU auto is float32, elsewhere what the encoder of `folder` is stored in.
    """
    if dtype != "auto":
        return dtype_of(dtype)
    if torch.device(device).type == "cpu":
        return torch.float32
    return stored_dtype(folder / "encoder")


def guided_dtype(dtype: Dtype, path: str, device: torch.device | str) -> torch.dtype:
    """The dtype of a guided model, a folder or hub id: the one that was asked for, or else by device and size.

    auto is float32, in which its editors optimise, but float16 for an SDXL on a GPU.
    """
    if dtype != "auto":
        return dtype_of(dtype)
    with named_in_errors(path):
        large = DiffusionPipeline.load_config(path).get("text_encoder_2", (None, None))[0] is not None
    return torch.float16 if large and torch.device(device).type != "cpu" else torch.float32


def stored_dtype(component: Path) -> torch.dtype:
    """The floating point type of the weights in a component's folder; float32 where it is none of the usual ones."""
    for path in sorted(component.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118, it is no mapping
                if (found := _STORED.get(weights.get_slice(name).get_dtype())) is not None:
                    return found
    return torch.float32


def beside_float32(dtype: torch.dtype) -> tuple[str, ...]:
    """What a dtype adds to the settings of kept work: its name; nothing for float32, once the only one."""
    return () if dtype == torch.float32 else (name_of(dtype),)


def name_of(dtype: torch.dtype) -> str:
    """The name by which options and reports call a dtype."""
    return str(dtype).removeprefix("torch.")
