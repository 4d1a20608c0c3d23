"""SANA-Sprint: a trigonometric flow x_t = cos(t) x0 + sin(t) eps in a few large steps, with Gemma-2 for text.

Its network was a rectified flow's. It is fed the time s = sin t / (sin t + cos t) of the same mixture, the mixture in
that flow's scale, and a strength of guidance; what it gives is turned back into the trigonometric flow's prediction
(Chen et al. 2025, section 3.1). The stock pipeline's sigma_data scales latents and noise alike, so it falls out here:
both have a standard deviation of about one.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from torch import Tensor
from transformers import AutoTokenizer, Gemma2Model

from .backbone import Backbone, loaded
from .own_dtype import in_own_dtype
from .shapes import Sizes
from .text import Prompt, Text
from .widening import copied, doubled, remade
from .words import Reader

CAPTION_TOKENS = 300
"""Tokens that are read of a caption, without those of the instruction before it (the stock pipeline's own number)."""

INSTRUCTION: tuple[str, ...] = tuple(
    inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
)
"""What Gemma is asked to do with the caption, whose states are then those of a reader who will do it."""

GUIDANCE = 4.5
"""Strength of guidance that the network is told (the stock pipeline's own number)."""

CHANNELS = 32
"""Channels of a latent."""


class GemmaInstruction:
    """SANA's text: the last hidden state of Gemma-2 for the caption behind an instruction."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizers = (tokenizer,)
        self.encoders = (encoder,)

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts`, to which sizes are nothing; `device` is where hooks move weights, if not there."""
        (tokenizer,), (encoder,) = self.tokenizers, self.encoders
        stock = SanaSprintPipeline(tokenizer, encoder, vae=None, transformer=None, scheduler=None)
        embeds, mask = stock.encode_prompt(
            list(texts),
            device=device or encoder.device,
            max_sequence_length=CAPTION_TOKENS,
            complex_human_instruction=list(INSTRUCTION),
        )
        return Prompt(embeds, mask=mask.bool())


class Sana(Backbone):
    """A frozen SANA-Sprint."""

    NETWORK = SanaTransformer2DModel
    VAE = AutoencoderDC
    SCHEDULER = SCMScheduler
    TEXT_ENCODERS: ClassVar[Mapping[str, Any]] = {"text_encoder": Gemma2Model}
    TOKENIZERS: ClassVar[Mapping[str, Any]] = {"tokenizer": AutoTokenizer}

    @classmethod
    def text_of(cls, components: Mapping[str, Any]) -> Text:
        """Gemma-2 with its tokenizer."""
        return GemmaInstruction(components["tokenizer"], components["text_encoder"])

    @classmethod
    def readers_of(cls, tokenizers: Sequence[Any]) -> tuple[Reader, ...]:
        """Gemma's; the first token is the start, the second the last one of the instruction."""
        return tuple(Reader(one, CAPTION_TOKENS - 2) for one in tokenizers)

    @staticmethod
    def evaluate(network: SanaTransformer2DModel, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """Output [B, nC, h, w] in float32 at `x` [B, kC, h, w] and angles t [B] in [0, pi / 2].

        The first C channels are the trigonometric flow's prediction at the first latent, further ones what the network
        gives.
        """
        signal, noise = t.float().cos(), t.float().sin()
        time = noise / (signal + noise)
        s = time.view(-1, 1, 1, 1)
        scale = (s**2 + (1 - s) ** 2).sqrt()
        mixture = x.float() * scale
        mask = None if prompt.mask is None else prompt.mask.to(x.device, non_blocking=True)
        output = network(
            mixture.to(x.dtype),
            prompt.embeds,
            time,
            guidance=torch.full_like(time, GUIDANCE * network.config.guidance_embeds_scale),
            encoder_attention_mask=mask,
            return_dict=False,
        )[0].float()
        velocity = output[:, :CHANNELS]
        prediction = ((1 - 2 * s) * mixture[:, :CHANNELS] + (1 - 2 * s + 2 * s**2) * velocity) / scale
        return torch.cat([prediction, output[:, CHANNELS:]], dim=1)

    @staticmethod
    def compute_dtype(network: SanaTransformer2DModel) -> torch.dtype:
        """The dtype of its norms, however the other layers are stored."""
        return network.caption_norm.weight.dtype

    @staticmethod
    def widened(network: SanaTransformer2DModel, shared: bool = False) -> SanaTransformer2DModel:
        """A network of 2C channels in, whose patch embedding has zeros for the last C."""
        wide = copied(network, shared)
        wide.patch_embed.proj = doubled(network.patch_embed.proj)
        wide.register_to_config(in_channels=2 * network.config.in_channels)
        return wide

    @staticmethod
    def append_outputs(network: SanaTransformer2DModel, constants: Sequence[float]) -> None:
        """Give the last projection C channels more at each place of a patch for each constant."""
        last, channels = network.proj_out, network.config.out_channels
        weight, bias = (x.detach().unflatten(0, (-1, channels)) for x in (last.weight, last.bias))
        weight = torch.cat([weight, *(torch.zeros_like(weight) for _ in constants)], dim=1)
        bias = torch.cat([bias, *(torch.full_like(bias, constant) for constant in constants)], dim=1)
        network.proj_out = remade(last, weight.flatten(0, 1), bias.flatten())
        network.register_to_config(out_channels=channels * (1 + len(constants)))

    @staticmethod
    def random_inputs(network: SanaTransformer2DModel, batch: int) -> tuple[Tensor, Prompt]:
        """Latents of the network's own size and CAPTION_TOKENS tokens."""
        draw, config = torch.Generator().manual_seed(0), network.config
        x = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, generator=draw)
        embeds = torch.randn(batch, CAPTION_TOKENS, config.caption_channels, generator=draw)
        return x.to(network.device), Prompt(embeds).to(network.device)

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The tokens, and which of them are there."""
        return ("prompt", "mask")

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures for which the network was made."""
        return loaded(self.network, "network").config.sample_size * self.vae_factor

    @property
    def vae_factor(self) -> int:
        """Pixels beside each other for one place of a latent."""
        return loaded(self.vae, "vae").spatial_compression_ratio

    @property
    def vae_width(self) -> int:
        """Channels of the autoencoder's first level, which works at the pictures' own size."""
        width: int = loaded(self.vae, "vae").config.encoder_block_out_channels[0]
        return width

    @property
    def network_factor(self) -> int:
        """The side of a patch."""
        return loaded(self.network, "network").config.patch_size

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Scaled latent [B, 32, h, w] in float32 of `image` [B, 3, H, W] in [-1, 1]; there is no posterior."""
        vae = loaded(self.vae, "vae")
        return in_own_dtype(lambda x, _: vae.encode(x).latent, vae.dtype, image) * vae.config.scaling_factor

    def unscale(self, latent: Tensor) -> Tensor:
        """The latent [B, 32, h, w] as the autoencoder itself gives and takes it, of a scaled one."""
        return latent / loaded(self.vae, "vae").config.scaling_factor


FAMILY = Sana
