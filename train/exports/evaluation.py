"""One evaluation of a UNet on random inputs: what it gives, and how long it takes."""

import time

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from models.text import Prompt

TOKENS = 77


def random_inputs(unet: UNet2DConditionModel, batch: int) -> tuple[Tensor, Prompt]:
    """Latents [B, C, h, w] and a prompt of the UNet's sizes, on its device; always the same ones."""
    draw, config = torch.Generator().manual_seed(0), unet.config
    latents = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, generator=draw)
    embeds = torch.randn(batch, TOKENS, config.cross_attention_dim, generator=draw)
    pooled = time_ids = None
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pooled, time_ids = torch.randn(batch, width, generator=draw), torch.full((batch, 6), 512.0)
    return latents.to(unet.device), Prompt(embeds, pooled, time_ids).to(unet.device)


@torch.no_grad()
def evaluation_sec(unet: UNet2DConditionModel) -> float:
    """Seconds that the UNet takes for one picture, in float32."""
    latents, prompt = random_inputs(unet, batch=1)
    started = time.perf_counter()
    unet(latents, 999, **prompt.unet_inputs()).sample.sum().item()  # waits for a GPU
    return time.perf_counter() - started
