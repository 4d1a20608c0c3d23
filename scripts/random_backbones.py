"""Few-step generators of real sizes with random weights, and shards that fit them, to measure speed without files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from data.sample import SampleInfo
from data.shards import Origin, Sample, npy_bytes, write_manifest, write_shard
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.schedule import NoiseSchedule
from models.text import DualClipText
from scripts.miniature import parts

CAPTION = "a large red circle on the left of a small blue square, on a photograph of gravel"

SDXL_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""SDXL-Turbo's UNet for 512-pixel images: 2.6 billion weights."""

SDXL_TOKENS = 77


def miniature_generator(device: torch.device, dtype: torch.dtype) -> FewStepGenerator:
    """The miniature's student, with its two text encoders."""
    tokenizer = parts.build_tokenizer([CAPTION])
    clip = parts.build_clip(tokenizer).config.text_config
    encoders = [kind(clip).to(device, dtype) for kind in (CLIPTextModel, CLIPTextModelWithProjection)]
    unet = parts.build_student_unet(parts.build_teacher_unet()).to(device, dtype)
    text = DualClipText([tokenizer] * 2, encoders)
    return FewStepGenerator(Backbone(schedule=_schedule(), unet=unet, vae=parts.build_vae(), text=text))


def sdxl_generator(device: torch.device, dtype: torch.dtype) -> FewStepGenerator:
    """SDXL-Turbo's UNet, without text encoders; its VAE is one that only gives the image size, 512."""
    with torch.device(device):
        unet = UNet2DConditionModel(**SDXL_UNET).to(dtype)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=4,
    )
    return FewStepGenerator(Backbone(schedule=_schedule(), unet=unet, vae=vae))


def _schedule() -> NoiseSchedule:
    return NoiseSchedule.from_scheduler(parts.student_scheduler())


def write_random_shards(folder: Path, generator: FewStepGenerator, num_samples: int) -> Path:
    """One shard of random latents with captions and prompt embeddings of the generator's shapes; returns `folder`."""
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
    size = generator.backbone.image_size
    samples = []
    for number in range(num_samples):
        key = f"random{number:05d}"
        info = SampleInfo(key, CAPTION, CAPTION, (size, size), (0, 0, size, size), "0" * 64, f"{key}.png")
        arrays = {name: draw.standard_normal(shape, np.float32).astype(np.float16) for name, shape in shapes.items()}
        members = {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()}
        samples.append(Sample(key, {"json": info.to_json(), **members}))
    properties = {"resolution": size, "latent_fingerprint": "random", "vae_fingerprint": "random"}
    sidecar = write_shard(folder, "unit-000000", samples, Origin("random", {}, {}, properties), inputs="random")
    write_manifest(folder, {"unit-000000": sidecar})
    return folder
