"""SDXL-Turbo's folder with random weights, in the form in which the hub has it: epsilon prediction, float16 files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from scripts.bench.random_backbones import (
    CAPTION,
    SDXL,
    SDXL_TOKENS,
    SdxlSize,
    sdxl_unet_config,
    text_configs,
    vae_config,
)
from scripts.miniature import parts

VARIANT = "fp16"
TEXT_ENCODERS = (CLIPTextModel, CLIPTextModelWithProjection)
VOCABULARY = 49_408
"""Entries of CLIP's vocabulary, for which the text encoders have embeddings."""


def write_turbo_folder(
    folder: Path, size: SdxlSize = SDXL, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer] | None = None
) -> Path:
    """Write the folder of a pipeline like SDXL-Turbo with random weights, one part after another.

    At full size it has 6.9 GB and takes 5.2 GB of memory.

    Args:
        folder: Folder to make.
        size: Widths of all parts.
        tokenizers: Tokenizers of the two text encoders; by default one that knows a single caption for both.

    Returns:
        The folder. Its weights are the variant VARIANT.
    """
    if tokenizers is None:
        tokenizer = parts.build_tokenizer([CAPTION])
        tokenizer.model_max_length = SDXL_TOKENS
        tokenizers = tokenizer, tokenizer
    scheduler = EulerAncestralDiscreteScheduler(**parts.SCHEDULE | {"prediction_type": "epsilon"})
    kinds: dict[str, Callable[[], torch.nn.Module]] = {
        "unet": partial(UNet2DConditionModel, **sdxl_unet_config(size)),
        "vae": partial(AutoencoderKL, **vae_config(size.vae) | {"force_upcast": True}),
    }
    names = ("text_encoder", "text_encoder_2")
    for name, kind, tokenizer, config in zip(names, TEXT_ENCODERS, tokenizers, text_configs(size), strict=True):
        whole = CLIPTextConfig(**parts.text_config(tokenizer) | config | {"vocab_size": VOCABULARY})
        kinds[name] = partial(kind, whole)
    for name, make in kinds.items():
        with _default_dtype(torch.float16):
            make().save_pretrained(folder / name, variant=VARIANT)  # type: ignore[operator]
    with torch.device("meta"):
        networks = {name: make() for name, make in kinds.items()}
    first, second = tokenizers
    pipeline = StableDiffusionXLPipeline(**networks, tokenizer=first, tokenizer_2=second, scheduler=scheduler)
    pipeline.save_config(folder)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        getattr(pipeline, name).save_pretrained(folder / name)
    return folder


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
