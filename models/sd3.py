"""Stable Diffusion 3 and 3.5 (Turbo): a rectified flow on 16 channels, told of the text by two CLIPs and a T5."""

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .backbone import Backbone, loaded
from .pipeline_files import PipelineFiles
from .shapes import Sizes
from .text import Prompt, Text, silent
from .widening import copied, doubled, remade, weight_of
from .words import CLIP_TOKENS, Reader, clip_readers

T5_TOKENS = 256
"""Tokens that the stock pipeline gives to T5, the end among them. CLIP's encoders read the first 77 of a text."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Projections of the attention, with the text's own."""


class Sd3Text:
    """Prompts by the stock pipeline's own method: CLIP's states, padded to T5's width, then T5's; CLIP's two pooled.

    Args:
        tokenizers, encoders: two CLIPs and a T5, or the CLIPs alone, beside which the pipeline puts zeros for T5.
    """

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any]) -> None:
        self.tokenizers, self.encoders = tuple(tokenizers), tuple(encoders)
        names = ("", "_2", "_3")[: len(self.encoders)]
        parts = {f"tokenizer{name}": one for name, one in zip(names, self.tokenizers, strict=True)}
        parts |= {f"text_encoder{name}": one for name, one in zip(names, self.encoders, strict=True)}
        missing = {} if len(names) == 3 else {"tokenizer_3": None, "text_encoder_3": None}
        self._stock = StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **parts, **missing)

    def pad_to(self, width: int) -> None:
        """Let T5's zeros be `width` wide, as the network takes embeddings: all that the pipeline asks of a network."""
        self._stock.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts`, to which sizes are nothing; `device` is where hooks move weights, if not there."""
        with silent(_STOCK_LOG):  # it warns of each text that CLIP does not read to the end
            embeds, _, pooled, _ = self._stock.encode_prompt(
                list(texts),
                prompt_2=None,
                prompt_3=None,
                device=device or self.encoders[0].device,
                do_classifier_free_guidance=False,
                max_sequence_length=T5_TOKENS,
            )
        return Prompt(embeds, pooled)


_STOCK_LOG = logging.getLogger(StableDiffusion3Pipeline.__module__)


class StableDiffusion3(Backbone):
    """A frozen Stable Diffusion 3 or 3.5, with T5 or without."""

    NETWORK = SD3Transformer2DModel
    TEXT_ENCODERS: ClassVar[Mapping[str, Any]] = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    TOKENIZERS: ClassVar[Mapping[str, Any]] = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5TokenizerFast,
    }
    OPTIONAL = ("text_encoder_3", "tokenizer_3")
    LORA_TARGETS = ATTENTION

    @classmethod
    def text_of(cls, components: Mapping[str, Any]) -> Text:
        """Two CLIPs, and T5 where the pipeline has it."""
        encoders = [components[name] for name in cls.TEXT_ENCODERS if components.get(name) is not None]
        tokenizers = [components[name] for name in cls.TOKENIZERS if components.get(name) is not None]
        text = Sd3Text(tokenizers, encoders)
        if (network := components.get(cls.NETWORK_NAME)) is not None:
            text.pad_to(network.config.joint_attention_dim)
        return text

    @classmethod
    def read(cls, files: PipelineFiles, parts: Sequence[str], *dtypes: Any, **options: Any) -> Backbone:
        """Read some parts; of texts alone the network's config says how wide they are."""
        found = super().read(files, parts, *dtypes, **options)
        if isinstance(found.text, Sd3Text) and found.network is None:
            config = cls.NETWORK.load_config(files.path, subfolder=cls.NETWORK_NAME)
            found.text.pad_to(config["joint_attention_dim"])
        return found

    @classmethod
    def readers_of(cls, tokenizers: Sequence[Any]) -> tuple[Reader, ...]:
        """T5, which reads more than CLIP's encoders; those where there is none."""
        t5 = tokenizers[2:]
        return tuple(Reader(one, T5_TOKENS - 1) for one in t5) if t5 else clip_readers(tokenizers)

    @staticmethod
    def evaluate(network: SD3Transformer2DModel, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """The network's output [B, nC, h, w] at `x` [B, kC, h, w] and sigma t [B], of which it is fed 1000 times."""
        return network(
            hidden_states=x,
            encoder_hidden_states=prompt.embeds,
            pooled_projections=prompt.pooled,
            timestep=1000 * t.float(),  # its embedding takes float32 and is rounded after sine and cosine alone
            return_dict=False,
        )[0]

    @staticmethod
    def compute_dtype(network: SD3Transformer2DModel) -> torch.dtype:
        """The dtype of its norms, however the other layers are stored; of 3.0, which has none, that of biases."""
        norm = network.transformer_blocks[0].attn.norm_q
        return network.context_embedder.bias.dtype if norm is None else norm.weight.dtype

    @staticmethod
    def widened(network: SD3Transformer2DModel, shared: bool = False) -> SD3Transformer2DModel:
        """A transformer of 2C channels in, whose convolution of patches has zeros for the last C."""
        wide = copied(network, shared)
        wide.pos_embed.proj = doubled(network.pos_embed.proj)
        wide.register_to_config(in_channels=2 * network.config.in_channels)
        return wide

    @staticmethod
    def append_outputs(network: SD3Transformer2DModel, constants: Sequence[float]) -> None:
        """Give proj_out C channels more for each constant: its rows are a patch's places, channels within each."""
        channels, last = network.out_channels, network.proj_out
        weight = weight_of(last).unflatten(0, (-1, channels))
        bias = last.bias.detach().unflatten(0, (-1, channels))
        weights = [weight, *(torch.zeros_like(weight) for _ in constants)]
        biases = [bias, *(torch.full_like(bias, constant) for constant in constants)]
        network.proj_out = remade(last, torch.cat(weights, dim=1).flatten(0, 1), torch.cat(biases, dim=1).flatten())
        network.out_channels = channels * (1 + len(constants))
        network.register_to_config(out_channels=network.out_channels)

    @staticmethod
    def random_inputs(network: SD3Transformer2DModel, batch: int) -> tuple[Tensor, Prompt]:
        """Latents and embeddings of 77 tokens from a normal distribution."""
        draw, config = torch.Generator().manual_seed(0), network.config
        latents = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size, generator=draw)
        embeds = torch.randn(batch, CLIP_TOKENS, config.joint_attention_dim, generator=draw)
        pooled = torch.randn(batch, config.pooled_projection_dim, generator=draw)
        return latents.to(network.device), Prompt(embeds, pooled).to(network.device)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images for which the transformer was made."""
        own = loaded(self.network, "network").config.sample_size
        return self.pixels((own, own))[0]

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The tokens of all encoders, and CLIP's pooled embeddings."""
        return ("prompt", "pooled")

    @property
    def network_factor(self) -> int:
        """The side of its patches."""
        return loaded(self.network, "network").config.patch_size


FAMILY = StableDiffusion3
