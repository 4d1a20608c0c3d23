"""FLUX.1: a rectified flow of packed latents, told of the text by T5's tokens and CLIP's pooled embedding.

FLUX.1-schnell is the few-step one (Black Forest Labs 2024).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .backbone import Backbone, loaded
from .shapes import Sizes
from .text import Prompt, Text, silent
from .widening import appended, copied, doubled
from .words import Reader

GUIDANCE = 3.5
"""Guidance that a network with an embedding of it is told, FLUX.1-dev's: the stock pipeline's own."""

T5_TOKENS = 256
"""Tokens for which FLUX.1-schnell was distilled."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Projections of the attention, with the text's own in the double blocks."""

PATCH = 2
"""Side of the patches of a latent that are one row of the network."""


class FluxText:
    """Token embeddings of T5 and CLIP's pooled one, made by the stock pipeline's own method."""

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any]) -> None:
        self.tokenizers = tuple(tokenizers)
        self.encoders = tuple(encoders)
        clip, t5 = zip(self.tokenizers, self.encoders, strict=True)
        self._stock = FluxPipeline(
            scheduler=None,
            vae=None,
            transformer=None,
            tokenizer=clip[0],
            text_encoder=clip[1],
            tokenizer_2=t5[0],
            text_encoder_2=t5[1],
        )

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts`, to which sizes are nothing; `device` is where hooks move weights, if not there."""
        with silent(_STOCK_LOG):  # it warns of each text that CLIP does not read to the end
            embeds, pooled, _ = self._stock.encode_prompt(
                list(texts), device=device or self.encoders[0].device, max_sequence_length=T5_TOKENS
            )
        return Prompt(embeds, pooled)


_STOCK_LOG = logging.getLogger(FluxPipeline.__module__)


class Flux(Backbone):
    """A frozen FLUX.1."""

    NETWORK = FluxTransformer2DModel
    TEXT_ENCODERS: ClassVar[Mapping[str, Any]] = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
    TOKENIZERS: ClassVar[Mapping[str, Any]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5TokenizerFast}
    BLOCKS: ClassVar[Mapping[str, str]] = {
        "transformer_blocks": "num_layers",
        "single_transformer_blocks": "num_single_layers",
    }
    LORA_TARGETS = ATTENTION

    @classmethod
    def text_of(cls, components: Mapping[str, Any]) -> Text:
        """CLIP and T5."""
        return FluxText([components[name] for name in cls.TOKENIZERS], [components[name] for name in cls.TEXT_ENCODERS])

    @classmethod
    def readers_of(cls, tokenizers: Sequence[Any]) -> tuple[Reader, ...]:
        """T5, with its end; CLIP reads the beginning alone, for its pooled embedding."""
        return (Reader(tokenizers[1], T5_TOKENS - 1),)

    @staticmethod
    def evaluate(network: FluxTransformer2DModel, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """The network's output [B, nC, h, w] at `x` [B, kC, h, w] and sigma t [B]: the velocity of the first C."""
        height, width = (length // PATCH for length in x.shape[-2:])
        guidance = torch.full_like(t, GUIDANCE) if network.config.guidance_embeds else None
        fed = [1000 * t] if guidance is None else [1000 * t, 1000 * guidance]
        with exact_times(network.time_text_embed.time_proj, fed):
            output = network(
                hidden_states=as_rows(F.pixel_unshuffle(x, PATCH)),
                encoder_hidden_states=prompt.embeds,
                pooled_projections=prompt.pooled,
                timestep=t,
                guidance=guidance,
                img_ids=positions(x.device, 1, height, width),
                txt_ids=torch.zeros(prompt.embeds.shape[1], 3, dtype=torch.long, device=x.device),
                return_dict=False,
            )[0]
        return F.pixel_shuffle(as_picture(output, height, width), PATCH)

    @staticmethod
    def compute_dtype(network: FluxTransformer2DModel) -> torch.dtype:
        """The dtype of its norms, however the other layers are stored."""
        return network.transformer_blocks[0].attn.norm_q.weight.dtype

    @staticmethod
    def widened(network: FluxTransformer2DModel, shared: bool = False) -> FluxTransformer2DModel:
        """A transformer of 2C channels in, whose x_embedder has zeros for the last C."""
        wide = copied(network, shared)
        wide.x_embedder = doubled(network.x_embedder)
        wide.register_to_config(in_channels=2 * network.config.in_channels, out_channels=network.out_channels)
        return wide

    @staticmethod
    def append_outputs(network: FluxTransformer2DModel, constants: Sequence[float]) -> None:
        """Give proj_out the patches of C channels more for each constant."""
        features = network.out_channels
        network.proj_out = appended(network.proj_out, constants, features)
        network.out_channels = features * (1 + len(constants))
        network.register_to_config(out_channels=network.out_channels)

    @staticmethod
    def random_inputs(network: FluxTransformer2DModel, batch: int) -> tuple[Tensor, Prompt]:
        """A latent of 64 places beside each other and a prompt of T5_TOKENS tokens, always the same ones."""
        config, draw = network.config, torch.Generator().manual_seed(0)
        x = torch.randn(batch, config.in_channels // PATCH**2, 64, 64, generator=draw)
        embeds = torch.randn(batch, T5_TOKENS, config.joint_attention_dim, generator=draw)
        pooled = torch.randn(batch, config.pooled_projection_dim, generator=draw)
        return x.to(network.device), Prompt(embeds, pooled).to(network.device)

    @property
    def image_size(self) -> int:
        """Side in pixels for which the autoencoder, and the network with it, was made."""
        return loaded(self.vae, "vae").config.sample_size

    @property
    def latent_channels(self) -> int:
        """A quarter of what makes a row."""
        return loaded(self.network, "network").config.in_channels // PATCH**2

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """T5's tokens and CLIP's pooled embedding."""
        return ("prompt", "pooled")


def positions(device: torch.device, *lengths: int) -> Tensor:
    """The places of a grid of some `lengths`, the last the fastest, [n, number of lengths]."""
    return torch.cartesian_prod(*(torch.arange(length, device=device) for length in lengths))


def as_rows(patches: Tensor) -> Tensor:
    """Patches [B, D, h, w] as a transformer takes them, [B, h w, D]."""
    return patches.flatten(2).transpose(1, 2)


def as_picture(rows: Tensor, height: int, width: int) -> Tensor:
    """A transformer's rows [B, h w, D] in their places, [B, D, h, w]."""
    return rows.transpose(1, 2).unflatten(2, (height, width))


@contextmanager
def exact_times(embedding: nn.Module, times: Sequence[Tensor]) -> Iterator[None]:
    """Let the next calls of a sinusoidal `embedding` in the block see these times [B], each in its turn.

    The FLUX networks round what they are given to their dtype before that: 750 to 752 in bfloat16.
    """
    left = iter(times)
    handle = embedding.register_forward_pre_hook(lambda module, given: (next(left),))
    try:
        yield
    finally:
        handle.remove()


FAMILY = Flux
