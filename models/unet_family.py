"""Stable Diffusion and SDXL: a UNet on CLIP's embeddings, and how it takes a second latent and gives a Gaussian."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .backbone import Backbone, loaded
from .text import ClipText, DualClipText, Prompt, Text
from .widening import appended, copied, doubled

_TOKENS = 77

GUIDANCE = 8.0
"""Scale of classifier-free guidance that latent consistency models embed, as the cards of LCM-SDXL and of LCM's
Dreamshaper set it."""


class UNetBackbone(Backbone):
    """A frozen Stable Diffusion or SDXL: one CLIP text encoder, or two and the sizes of pictures."""

    NETWORK = UNet2DConditionModel
    NETWORK_NAME = "unet"
    SCHEDULER = DDPMScheduler
    TEXT_ENCODERS: ClassVar[Mapping[str, Any]] = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    TOKENIZERS: ClassVar[Mapping[str, Any]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    OPTIONAL = ("text_encoder_2", "tokenizer_2")

    @classmethod
    def text_of(cls, components: Mapping[str, Any]) -> Text:
        """One CLIP, or two where the pipeline has them."""
        if components.get("text_encoder_2") is None:
            return ClipText(components["tokenizer"], components["text_encoder"])
        return DualClipText(
            [components[name] for name in cls.TOKENIZERS], [components[name] for name in cls.TEXT_ENCODERS]
        )

    @staticmethod
    def evaluate(network: UNet2DConditionModel, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """The UNet's output [B, nC, h, w] at `x` [B, kC, h, w], which is fed the index t [B] itself.

        One of a latent consistency model, which embeds a guidance, is told GUIDANCE.
        """
        width = network.config.time_cond_proj_dim
        guidance = None if width is None else guidance_embedding(GUIDANCE, width, x).expand(len(x), -1)
        return network(x, t, timestep_cond=guidance, **prompt.unet_inputs()).sample

    @staticmethod
    def compute_dtype(network: UNet2DConditionModel) -> torch.dtype:
        """The dtype of its norms, however the other layers are stored."""
        return network.conv_norm_out.weight.dtype

    @staticmethod
    def widened(network: UNet2DConditionModel, shared: bool = False) -> UNet2DConditionModel:
        """A UNet of 2C channels in, whose conv_in has zeros for the last C."""
        wide = copied(network, shared)
        wide.conv_in = doubled(network.conv_in)
        wide.register_to_config(in_channels=2 * network.config.in_channels)
        return wide

    @staticmethod
    def append_outputs(network: UNet2DConditionModel, constants: Sequence[float]) -> None:
        """Give conv_out C channels more for each constant."""
        channels = network.config.out_channels
        network.conv_out = appended(network.conv_out, constants, channels)
        network.register_to_config(out_channels=channels * (1 + len(constants)))

    @staticmethod
    def random_inputs(network: UNet2DConditionModel, batch: int) -> tuple[Tensor, Prompt]:
        """Latents and embeddings of 77 tokens from a normal distribution; sizes of 512 pixels."""
        draw, config = torch.Generator().manual_seed(0), network.config
        latents = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, generator=draw)
        embeds = torch.randn(batch, _TOKENS, config.cross_attention_dim, generator=draw)
        pooled = time_ids = None
        if config.addition_embed_type == "text_time":
            width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            pooled, time_ids = torch.randn(batch, width, generator=draw), torch.full((batch, 6), 512.0)
        return latents.to(network.device), Prompt(embeds, pooled, time_ids).to(network.device)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The network by its own name; None where it was not loaded."""
        return self.network

    @property
    def image_size(self) -> int:
        """Side in pixels of the images for which the UNet was made."""
        own = loaded(self.network, "network").config.sample_size
        return self.pixels((own, own))[0]

    @property
    def takes_sizes(self) -> bool:
        """SDXL's UNets do."""
        return loaded(self.network, "network").config.addition_embed_type == "text_time"

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """SDXL has pooled embeddings too."""
        return ("prompt", "pooled") if self.takes_sizes else ("prompt",)

    @property
    def network_factor(self) -> int:
        """A half for each level but the first."""
        return 2 ** (len(loaded(self.network, "network").config.block_out_channels) - 1)


def guidance_embedding(scale: float, width: int, like: Tensor) -> Tensor:
    """The embedding [1, width] of a guidance scale as diffusers' pipelines of latent consistency models make it.

    Sines and cosines of 1000 (scale - 1) at frequencies from 1 down to 1e-4 (LCM, arXiv:2310.04378). Made in float32;
    it has the dtype and the device of `like`.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=like.device) * -(math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (scale - 1.0) * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2)).to(like.dtype)[None]


FAMILY = UNetBackbone
