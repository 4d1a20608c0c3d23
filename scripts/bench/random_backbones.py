"""Few-step generators of real sizes with random weights, and shards that fit them, to measure speed without files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from data.shards.sample import SampleInfo
from data.shards.shard import Origin, Sample, npy_bytes, write_manifest, write_shard
from models.generator import FewStepGenerator
from models.schedule import NoiseSchedule
from models.text import DualClipText
from models.unet_family import UNetBackbone
from scripts.miniature import parts

CAPTION = "a large red circle on the left of a small blue square, on a photograph of gravel"

SDXL_TOKENS = 77
TIME_EMBEDDING = 256


@dataclass(frozen=True)
class SdxlSize:
    """Widths and depths of an SDXL; its blocks and their order are the same at every size.

    Args:
        side: Side of its latents.
        unet: Channels of its UNet's three levels.
        heads: Heads of attention at these levels.
        text: Width and heads of its two text encoders.
        vae: Channels of its VAE's four levels.
        depths: Layers of its UNet's transformers at the three levels.
        text_depths: Layers of its two text encoders.
    """

    side: int
    unet: tuple[int, int, int]
    heads: tuple[int, int, int]
    text: tuple[tuple[int, int], tuple[int, int]]
    vae: tuple[int, int, int, int]
    depths: tuple[int, int, int] = (1, 2, 10)
    text_depths: tuple[int, int] = (12, 32)


SDXL = SdxlSize(64, (320, 640, 1280), (5, 10, 20), ((768, 12), (1280, 20)), (128, 256, 512, 512))
"""SDXL-Turbo for 512-pixel images: 2.6 billion weights in its UNet."""

REDUCED = SdxlSize(16, (32, 64, 128), (1, 2, 4), ((64, 1), (128, 2)), (32, 32, 64, 64))
"""The same at a tenth of the width, for 128-pixel images: what a CPU can run."""


def miniature_generator(device: torch.device, dtype: torch.dtype) -> FewStepGenerator:
    """The miniature's student, with its two text encoders."""
    tokenizer = parts.build_tokenizer([CAPTION])
    clip = parts.build_clip(tokenizer).config.text_config
    encoders = [kind(clip).to(device, dtype) for kind in (CLIPTextModel, CLIPTextModelWithProjection)]
    unet = parts.build_student_unet(parts.build_teacher_unet()).to(device, dtype)
    text = DualClipText([tokenizer] * 2, encoders)
    return FewStepGenerator(UNetBackbone(schedule=_schedule(), network=unet, vae=parts.build_vae(), text=text))


def sdxl_generator(
    device: torch.device | str, dtype: torch.dtype, size: SdxlSize = SDXL, complete: bool = False
) -> FewStepGenerator:
    """SDXL-Turbo's UNet; unless it is `complete` without text encoders, and with a VAE that only gives the image size.

    Args:
        device: Device of its parts.
        dtype: Type of all weights.
        size: Widths of all parts.
        complete: Build text encoders and the whole VAE too.
    """
    with torch.device(device):
        unet = UNet2DConditionModel(**sdxl_unet_config(size)).to(dtype)
        vae = AutoencoderKL(**vae_config(size.vae if complete else (32,) * 4)).to(dtype)
        text = _sdxl_text(size, dtype) if complete else None
    return FewStepGenerator(UNetBackbone(schedule=_schedule(), network=unet, vae=vae, text=text))


def sdxl_unet_config(size: SdxlSize) -> dict[str, Any]:
    """Arguments of SDXL-Turbo's UNet2DConditionModel at this size."""
    widths = [width for width, _ in size.text]
    return {
        "sample_size": size.side,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": size.unet,
        "layers_per_block": 2,
        "transformer_layers_per_block": size.depths,
        "attention_head_dim": size.heads,
        "cross_attention_dim": sum(widths),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_EMBEDDING,
        "projection_class_embeddings_input_dim": 6 * TIME_EMBEDDING + widths[1],
    }


def vae_config(widths: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of an AutoencoderKL like SDXL's with these channels."""
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 2,
        "scaling_factor": 0.13025,
        "force_upcast": False,
    }


def text_configs(size: SdxlSize) -> list[dict[str, Any]]:
    """Configs of CLIP ViT-L and OpenCLIP ViT-bigG, but for their vocabulary."""
    kinds = zip(size.text_depths, ("quick_gelu", "gelu"), strict=True)
    return [
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "projection_dim": width,
            "hidden_act": activation,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": SDXL_TOKENS,
        }
        for (width, heads), (layers, activation) in zip(size.text, kinds, strict=True)
    ]


def _sdxl_text(size: SdxlSize, dtype: torch.dtype) -> DualClipText:
    """Both text encoders on the default device, with a small vocabulary."""
    tokenizer = parts.build_tokenizer([CAPTION])
    tokenizer.model_max_length = SDXL_TOKENS
    encoders = [
        kind(CLIPTextConfig(**parts.text_config(tokenizer) | config)).to(dtype)
        for kind, config in zip((CLIPTextModel, CLIPTextModelWithProjection), text_configs(size), strict=True)
    ]
    return DualClipText([tokenizer] * 2, encoders)


def _schedule() -> NoiseSchedule:
    return NoiseSchedule.from_scheduler(parts.student_scheduler())


def write_random_shards(folder: Path, generator: FewStepGenerator, num_samples: int) -> Path:
    """One shard of random latents with captions and prompt embeddings of the generator's shapes; returns `folder`.

    The embeddings are those of the caption where there are text encoders, else random.
    """
    folder.mkdir(parents=True)
    unet = generator.backbone.unet.config
    text = generator.backbone.text
    tokens = text.tokenizers[0].model_max_length if text else SDXL_TOKENS
    pooled = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
    shapes = {
        "latent": (unet.in_channels, unet.sample_size, unet.sample_size),
        "prompt": (tokens, unet.cross_attention_dim),
        "pooled": (pooled,),
    }
    draw = np.random.default_rng(0)
    embedded = generator.backbone.encode_text([CAPTION]) if text else None
    size = generator.backbone.image_size
    samples = []
    for number in range(num_samples):
        key = f"random{number:05d}"
        info = SampleInfo(key, CAPTION, CAPTION, (size, size), (0, 0, size, size), "0" * 64, f"{key}.png")
        arrays = {name: draw.standard_normal(shape, np.float32).astype(np.float16) for name, shape in shapes.items()}
        if embedded is not None and embedded.pooled is not None:
            arrays |= {"prompt": _half(embedded.embeds), "pooled": _half(embedded.pooled)}
        members = {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()}
        samples.append(Sample(key, {"json": info.to_json(), **members}))
    properties = {"resolution": size, "latent_fingerprint": "random", "vae_fingerprint": "random"}
    sidecar = write_shard(folder, "unit-000000", samples, Origin("random", {}, {}, properties), inputs="random")
    write_manifest(folder, {"unit-000000": sidecar})
    return folder


def _half(embedded: torch.Tensor) -> np.ndarray:
    return embedded[0].half().cpu().numpy()


def write_sdxl_configs(folder: Path, size: SdxlSize = SDXL) -> Path:
    """SDXL-Turbo's config files without weights or vocabularies, for `train.plan` offline; returns `folder`."""
    index = {"_class_name": "StableDiffusionXLPipeline", "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"]}
    configs: dict[str, dict[str, Any]] = {"unet": sdxl_unet_config(size), "vae": vae_config(size.vae)}
    for name, config in zip(("text_encoder", "text_encoder_2"), text_configs(size), strict=True):
        configs[name] = {**config, "vocab_size": 49408}
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    parts.student_scheduler().save_pretrained(folder / "scheduler")
    named = (*configs, "tokenizer", "tokenizer_2")
    (folder / "model_index.json").write_text(json.dumps(index | {name: ["", ""] for name in named}))
    return folder
