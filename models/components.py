"""The parts of a stock diffusers pipeline in a dtype."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from .weight_files import only_variant


def load_components(path: str, dtype: torch.dtype, variant: str | None = None, **options: Any) -> dict[str, Any]:
    """Load the parts of a diffusers pipeline, on the CPU, by name.

    Weights that are stored in `dtype` stay in their files until they are used.

    Args:
        path: Folder or hub id.
        dtype: Type of all weights but those of a VAE that overflows in float16, which gets float32.
        variant: File variant, such as "fp16"; without it that of a folder that has no plain files.
        options: Further arguments of `from_pretrained`.
    """
    wanted: Any = {"vae": torch.float32, "default": dtype}
    options = {**left_out(path), **options}
    variant = variant or only_variant(path)
    pipeline = DiffusionPipeline.from_pretrained(path, variant=variant, torch_dtype=wanted, **options)
    if not getattr(pipeline.vae.config, "force_upcast", False):
        pipeline.vae.to(dtype)
    return dict(pipeline.components)


def left_out(path: str) -> dict[str, None]:
    """The components that a folder or hub id names and does without, as `from_pretrained` wants to be told of them."""
    index = DiffusionPipeline.load_config(path)
    return {name: None for name, entry in index.items() if isinstance(entry, list | tuple) and entry[0] is None}
