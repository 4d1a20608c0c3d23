"""The dtype in which an evaluation loads a model, where the user leaves the choice to it."""

from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

from eval.harness.options import Dtype
from models.backbone import dtype_of, named_in_errors
from models.weight_files import files_by_variant, only_variant

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_LARGE = 1e9
"""Weights from which a network counts as large, as SDXL's 2.6e9: 2 GB in 16 bits. Stable Diffusion has 0.9e9."""


def export_dtype(dtype: Dtype, folder: Path, device: torch.device | str) -> torch.dtype:
    """The dtype of an export's encoder and UNet: the one that was asked for, or else by the device.

    auto is what the encoder of `folder` is stored in, but on a CPU float32, or bfloat16 for one as large as SDXL.
    """
    if dtype != "auto":
        return dtype_of(dtype)
    if torch.device(device).type == "cpu":
        return _dtype_on_cpu(str(folder), "encoder")
    return stored_dtype(folder / "encoder")


def guided_dtype(dtype: Dtype, path: str, device: torch.device | str) -> torch.dtype:
    """The dtype of a guided model, a folder or hub id: the one that was asked for, or else by device and size.

    auto is float32, in which its editors optimise, but for an SDXL float16 on a GPU, and bfloat16 on a CPU if it is of
    SDXL's size.
    """
    if dtype != "auto":
        return dtype_of(dtype)
    with named_in_errors(path):
        if DiffusionPipeline.load_config(path).get("text_encoder_2", (None, None))[0] is None:
            return torch.float32
        return _dtype_on_cpu(path, "unet") if torch.device(device).type == "cpu" else torch.float16


def _dtype_on_cpu(path: str, name: str) -> torch.dtype:
    """The dtype of a network on a CPU, by the config that the folder or hub id `path` has of it.

    float16 is none: only the newest CPUs multiply it, all others convert each factor.
    """
    config = UNet2DConditionModel.load_config(path, subfolder=name)  # reads that of any class
    with torch.device("meta"):
        network = getattr(diffusers, config.get("_class_name", UNet2DConditionModel.__name__)).from_config(config)
    return torch.bfloat16 if sum(weight.numel() for weight in network.parameters()) >= _LARGE else torch.float32


def stored_dtype(component: Path) -> torch.dtype:
    """The floating point type of the weights in a component's folder; float32 where it is none of the usual ones."""
    for path in files_by_variant(component).get(only_variant(component), []):
        if path.suffix != ".safetensors":
            continue
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
