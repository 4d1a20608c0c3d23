"""Stable Diffusion 3.5, Turbo above all: a rectified-flow transformer on 16 channels, with CLIP's two texts and T5's.

The facts are those of diffusers' StableDiffusion3Pipeline and SD3Transformer2DModel: what the network is fed is a
thousand times sigma, its output the velocity eps - x0, and a row of its last projection is one channel of one
pixel of a patch, channels the fastest.
"""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from .backbone import recast
from .shapes import Sizes
from .text import Prompt

TIME_SCALE = 1000
"""What sigma is multiplied with before it is fed to the network (num_train_timesteps of its scheduler)."""

T5_TOKENS = 256
"""Tokens that the stock pipeline gives to T5, the end among them; CLIP's encoders read the first 77 of a text."""


class Sd3Text:
    """The stock pipeline's own prompts: CLIP's penultimate states padded to T5's width, then T5's; CLIP's two pooled.

    Args:
        tokenizers, encoders: two CLIPs and a T5, or the CLIPs alone, which have zeros in T5's place.
        width: width of the embeddings that the transformer takes.
    """

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any], width: int) -> None:
        self.tokenizers, self.encoders = tuple(tokenizers), tuple(encoders)
        t5, t5_tokenizer = (encoders[2], tokenizers[2]) if len(encoders) > 2 else (None, None)
        self._stock = StableDiffusion3Pipeline(
            transformer=None,
            scheduler=None,
            vae=None,
            text_encoder=encoders[0],
            tokenizer=tokenizers[0],
            text_encoder_2=encoders[1],
            tokenizer_2=tokenizers[1],
            text_encoder_3=t5,
            tokenizer_3=t5_tokenizer,
        )
        # All that the pipeline asks of its transformer: without a T5 it makes zeros of this width.
        self._stock.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts` [B], to which sizes are nothing: embeds [B, 77 + 256, D], pooled [B, P].

        Args:
            device: where hooks move the encoders' weights, if not there.
        """
        embeds, _, pooled, _ = self._stock.encode_prompt(
            list(texts),
            None,
            None,
            device=device or self.encoders[0].device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return Prompt(embeds, pooled)


def evaluate(network: SD3Transformer2DModel, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
    """The network's velocity [B, kC, h, w] at x [B, kC, h, w], sigma t [B] in [0, 1]; k = 2 for a widened one."""
    return network(
        hidden_states=x,
        encoder_hidden_states=prompt.embeds,
        pooled_projections=prompt.pooled,
        timestep=t.float() * TIME_SCALE,
        return_dict=False,
    )[0]


def widened(network: SD3Transformer2DModel, shared: bool = False) -> SD3Transformer2DModel:
    """A transformer of 2C channels in whose weights for the last C are zeros: it starts as `network`."""
    tensors = (*network.parameters(), *network.buffers())
    wide = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors} if shared else None)
    wide.disable_gradient_checkpointing()
    if not shared:
        recast(wide, torch.float32)
        wide.requires_grad_(True)
    first = network.pos_embed.proj
    weight = first.weight.detach().float()
    wide.pos_embed.proj = _patches(torch.cat([weight, torch.zeros_like(weight)], dim=1), first.bias)
    wide.register_to_config(in_channels=2 * network.config.in_channels)
    return wide


def with_logvar(network: SD3Transformer2DModel, wide: SD3Transformer2DModel, initial_logvar: float) -> None:
    """Let a widened copy of `network` give C further channels that are `initial_logvar` everywhere."""
    last, channels = network.proj_out, network.out_channels
    weight, bias = last.weight.detach().float(), last.bias.detach().float()
    weight, bias = weight.unflatten(0, (-1, channels)), bias.unflatten(0, (-1, channels))  # patch's pixels, channels
    weight = torch.cat([weight, torch.zeros_like(weight)], dim=1).flatten(0, 1)
    bias = torch.cat([bias, torch.full_like(bias, initial_logvar)], dim=1).flatten()
    linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    linear.load_state_dict({"weight": weight, "bias": bias})
    wide.proj_out, wide.out_channels = linear, 2 * channels
    wide.register_to_config(out_channels=2 * channels)


def _patches(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A trainable float32 convolution of patches without overlap, with `weight` [D, kC, p, p] and `bias` [D]."""
    num_out, num_in, side, _ = weight.shape
    conv = nn.Conv2d(num_in, num_out, side, stride=side, device=weight.device)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv
