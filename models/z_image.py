"""Z-Image-Turbo: a rectified-flow transformer that takes lists of unpadded rows, with Qwen3 for text.

Its network gives the negative of the velocity and is fed the share of the picture, 1 - t, in the place of the time. The
picture's positions follow those of its caption, so a prompt has a mask of the tokens that are there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, Qwen3Model

from .backbone import Backbone, loaded
from .shapes import Sizes
from .text import Prompt, Text
from .widening import copied, remade
from .words import Reader

CHAT_TOKENS = 512
"""Tokens that are read of a caption, those of the chat around it among them (the stock pipeline's own number)."""

CHANNELS = 16
"""Channels of a latent."""


class QwenChat:
    """Z-Image's text: the last hidden state but one of Qwen3 for the caption as what a user says.

    It is what ZImagePipeline.encode_prompt gives in rows of their own lengths. Rows are cut by a mask there, which
    waits for the device; here they stay side by side, with the mask on the host.
    """

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizers = (tokenizer,)
        self.encoders = (encoder,)

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts`, to which sizes are nothing; `device` is where hooks move weights, if not there."""
        (tokenizer,), (encoder,) = self.tokenizers, self.encoders
        tokens = tokenizer(
            [_chat(tokenizer, text) for text in texts],
            padding="max_length",
            max_length=CHAT_TOKENS,
            truncation=True,
            padding_side="right",
            return_tensors="pt",
        )
        device, mask = device or encoder.device, tokens.attention_mask.bool()
        output = encoder(tokens.input_ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        return Prompt(output.hidden_states[-2], mask=mask)


def _chat(tokenizer: Any, text: str) -> str:
    """A text as what a user says to Qwen3, which is about to think of an answer."""
    said = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, enable_thinking=True)


class ZImage(Backbone):
    """A frozen Z-Image."""

    NETWORK = ZImageTransformer2DModel
    TEXT_ENCODERS: ClassVar[Mapping[str, Any]] = {"text_encoder": Qwen3Model}
    TOKENIZERS: ClassVar[Mapping[str, Any]] = {"tokenizer": AutoTokenizer}

    TAKES_LISTS = True

    @classmethod
    def text_of(cls, components: Mapping[str, Any]) -> Text:
        """Qwen3 with its tokenizer."""
        return QwenChat(components["tokenizer"], components["text_encoder"])

    @classmethod
    def readers_of(cls, tokenizers: Sequence[Any]) -> tuple[Reader, ...]:
        """Qwen's, which reads the chat around a text too."""
        return tuple(Reader(one, CHAT_TOKENS - len(one(_chat(one, "")).input_ids)) for one in tokenizers)

    @staticmethod
    def evaluate(network: ZImageTransformer2DModel, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """Output [B, nC, h, w] at `x` [B, kC, h, w], whose sides are even, and t [B] in [0, 1].

        All that the network gives changes its sign, what a widened one gives beside the velocity too. Its class gives
        as many channels as it takes, so one that gives more takes zeros with x. It takes lists, for which the host
        reads how many tokens each prompt has; it waits for the device where the mask lies there.
        """
        share = (1000 - 1000 * t) / 1000  # as the stock pipeline rounds it, which the network multiplies by 1000
        rows = list(prompt.embeds)
        if prompt.mask is not None:
            rows = [row[:length] for row, length in zip(rows, prompt.mask.sum(1).tolist(), strict=True)]
        padded = F.pad(x, (0, 0, 0, 0, 0, network.config.in_channels - x.shape[1]))
        pictures = list(padded.unsqueeze(2).unbind())
        return -torch.stack(network(pictures, share, rows, return_dict=False)[0]).squeeze(2)

    @staticmethod
    def compute_dtype(network: ZImageTransformer2DModel) -> torch.dtype:
        """The dtype of its norms, however the other layers are stored."""
        return network.layers[0].attention_norm1.weight.dtype

    @staticmethod
    def widened(network: ZImageTransformer2DModel, shared: bool = False) -> ZImageTransformer2DModel:
        """A network of 2C channels in, whose first projections have zeros for the last C of each place of a patch."""
        wide = copied(network, shared)
        _take(wide, 2 * network.config.in_channels)
        return wide

    @staticmethod
    def append_outputs(network: ZImageTransformer2DModel, constants: Sequence[float]) -> None:
        """Give the last projections C channels more at each place of a patch for each constant."""
        channels = network.out_channels
        for layer in network.all_final_layer.values():
            last = layer.linear
            weight, bias = (x.detach().unflatten(0, (-1, channels)) for x in (last.weight, last.bias))
            weight = torch.cat([weight, *(torch.zeros_like(weight) for _ in constants)], dim=1)
            bias = torch.cat([bias, *(torch.full_like(bias, -constant) for constant in constants)], dim=1)
            layer.linear = remade(last, weight.flatten(0, 1), bias.flatten())
        network.out_channels = channels * (1 + len(constants))
        _take(network, network.out_channels)

    @staticmethod
    def random_inputs(network: ZImageTransformer2DModel, batch: int) -> tuple[Tensor, Prompt]:
        """Latents of 32 places beside each other, two of them where the network is widened, and 64 tokens."""
        draw, channels = torch.Generator().manual_seed(0), min(network.config.in_channels, 2 * CHANNELS)
        x = torch.randn(batch, channels, 32, 32, generator=draw)
        embeds = torch.randn(batch, 64, network.config.cap_feat_dim, generator=draw)
        return x.to(network.device), Prompt(embeds).to(network.device)

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The tokens, and which of them are there."""
        return ("prompt", "mask")

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures for which the VAE was made; the network knows none."""
        return loaded(self.vae, "vae").config.sample_size


def _take(network: ZImageTransformer2DModel, channels: int) -> None:
    """Let a network take so many channels, with weights of zeros for those that are new."""
    before = network.config.in_channels
    for size, first in network.all_x_embedder.items():
        weight = first.weight.detach().unflatten(1, (-1, before))  # the channels of a place of a patch lie together
        weight = F.pad(weight, (0, channels - before)).flatten(1)
        network.all_x_embedder[size] = remade(first, weight, first.bias)
    network.in_channels = channels
    network.register_to_config(in_channels=channels)


FAMILY = ZImage
