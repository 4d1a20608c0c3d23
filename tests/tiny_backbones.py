"""Tiny random pipeline folders, SDXL-like and SD-like, made offline of the stock classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TEXT_WIDTH = 16


def save_tiny_backbone(folder: Path, tokenizers: Sequence[CLIPTokenizer] = ()) -> None:
    """Saves a random SDXL-like pipeline of about 200,000 weights; torch's seed decides them.

    Without `tokenizers` it reads letters.
    """
    tokenizers = tokenizers or [letter_tokenizer(folder / "vocab") for _ in range(2)]
    encoders = [
        clip_text_encoder(CLIPTextModel, tokenizers[0]),
        clip_text_encoder(CLIPTextModelWithProjection, tokenizers[1]),
    ]
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        unet=_unet(
            cross_attention_dim=2 * TEXT_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        ),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerAncestralDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
        ),
    )
    pipeline.save_pretrained(folder)


def save_tiny_sd_backbone(folder: Path) -> None:
    """Saves a random pipeline like Stable Diffusion 2: one text encoder, v prediction."""
    tokenizer = letter_tokenizer(folder / "vocab")
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        unet=_unet(cross_attention_dim=TEXT_WIDTH),
        text_encoder=clip_text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.7,
    )


def _unet(**text: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        norm_num_groups=8,
        use_linear_projection=True,
        **text,
    )


def clip_text_encoder(kind: type, tokenizer: CLIPTokenizer) -> torch.nn.Module:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config).eval()


def letter_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer over single letters: every text becomes its characters."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def save_with_variant(backbone: str, folder: Path) -> DiffusionPipeline:
    """Save a backbone whose weights all need float32, in float32 and as variant fp16; return it in float16."""
    pipeline = DiffusionPipeline.from_pretrained(backbone)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            shake(part, 0.02)
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    return pipeline


def shake(network: nn.Module, amount: float, seed: int = 0) -> None:
    """Add a random part to each of a network's weights."""
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.data += amount * torch.randn(weight.shape, generator=generator).to(weight)
