"""FLUX.2-klein: a rectified flow of patchified latents, told of the text by hidden states of Qwen3.

FLUX.2-klein 4B is the few-step one (Black Forest Labs 2026).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

from .backbone import Backbone, loaded
from .flux import ATTENTION, PATCH, Flux, as_picture, as_rows, exact_times, positions
from .options import INITIAL_LOGVAR
from .own_dtype import in_own_dtype
from .pipeline_files import PipelineFiles
from .shapes import Sizes
from .text import Prompt, Text
from .widening import appended, copied, doubled
from .words import Reader

QWEN_TOKENS = 512
"""Tokens of a text and its chat template, the stock pipeline's."""


class Flux2Text:
    """Hidden states of three of Qwen3's layers side by side, made by the stock pipeline's own method."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizers = (tokenizer,)
        self.encoders = (encoder,)

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts`, to which sizes are nothing; `device` is where hooks move weights, if not there."""
        (tokenizer,), (encoder,) = self.tokenizers, self.encoders
        return Prompt(
            Flux2KleinPipeline._get_qwen3_prompt_embeds(
                encoder, tokenizer, list(texts), device=device, max_sequence_length=QWEN_TOKENS
            )
        )


class Flux2(Backbone):
    """A frozen FLUX.2-klein."""

    NETWORK = Flux2Transformer2DModel
    VAE = AutoencoderKLFlux2
    TEXT_ENCODERS: ClassVar[Mapping[str, Any]] = {"text_encoder": Qwen3ForCausalLM}
    TOKENIZERS: ClassVar[Mapping[str, Any]] = {"tokenizer": Qwen2TokenizerFast}
    BLOCKS = Flux.BLOCKS
    LORA_TARGETS = (*ATTENTION, "to_qkv_mlp_proj")

    @classmethod
    def read(cls, files: PipelineFiles, *args: Any, **options: Any) -> Backbone:
        """Read some parts of a FLUX.2-klein; see Backbone.

        Raises:
            ValueError: another FLUX.2, whose text encoder is none of Qwen's.
        """
        kind = files.index.get("text_encoder", (None, None))[1]
        if kind != Qwen3ForCausalLM.__name__:
            raise ValueError(
                f"{files.path} is a {files.index.get('_class_name')} with the text encoder {kind}; of FLUX.2 "
                "those with Qwen3 are supported: take FLUX.2-klein"
            )
        return super().read(files, *args, **options)

    @classmethod
    def text_of(cls, components: Mapping[str, Any]) -> Text:
        """Qwen3."""
        return Flux2Text(components["tokenizer"], components["text_encoder"])

    @classmethod
    def readers_of(cls, tokenizers: Sequence[Any]) -> tuple[Reader, ...]:
        """Qwen's, which reads the chat template too."""
        (tokenizer,) = tokenizers
        empty = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return (Reader(tokenizer, QWEN_TOKENS - len(tokenizer(empty).input_ids)),)

    @staticmethod
    def evaluate(network: Flux2Transformer2DModel, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """The network's output [B, nC, h, w] at `x` [B, kC, h, w] and sigma t [B]: the velocity of the first C.

        The noise encoder's log-variance is INITIAL_LOGVAR more than the network says, which has no bias to hold it.
        """
        height, width = x.shape[-2:]
        with exact_times(network.time_guidance_embed.time_proj, [1000 * t]):
            output = network(
                hidden_states=as_rows(x),
                encoder_hidden_states=prompt.embeds,
                timestep=t,
                img_ids=positions(x.device, 1, height, width, 1),
                txt_ids=positions(x.device, 1, 1, 1, prompt.embeds.shape[1]),
                return_dict=False,
            )[0]
        output = as_picture(output, height, width)
        if output.shape[1] == x.shape[1]:
            return output
        velocity, logvar, addition = output.float().chunk(3, dim=1)
        return torch.cat([velocity, logvar + INITIAL_LOGVAR, addition], dim=1)

    @staticmethod
    def compute_dtype(network: Flux2Transformer2DModel) -> torch.dtype:
        """The dtype of its norms, however the other layers are stored."""
        return network.transformer_blocks[0].attn.norm_q.weight.dtype

    @staticmethod
    def widened(network: Flux2Transformer2DModel, shared: bool = False) -> Flux2Transformer2DModel:
        """A transformer of 2C channels in, whose x_embedder has zeros for the last C."""
        wide = copied(network, shared)
        wide.x_embedder = doubled(network.x_embedder)
        wide.register_to_config(in_channels=2 * network.config.in_channels, out_channels=network.out_channels)
        return wide

    @staticmethod
    def append_outputs(network: Flux2Transformer2DModel, constants: Sequence[float]) -> None:
        """Give proj_out C channels more for each constant, which `evaluate` makes of its zeros.

        Raises:
            ValueError: other constants than the noise encoder's usual ones, as the network has no bias for them.
        """
        if tuple(constants) != (INITIAL_LOGVAR, 0.0):
            raise ValueError(
                f"encoder.initial_logvar is {constants[0]}; FLUX.2's projections have no bias for another than "
                f"{INITIAL_LOGVAR}: leave it out"
            )
        channels = network.out_channels
        network.proj_out = appended(network.proj_out, (0.0,) * len(constants), channels)
        network.out_channels = channels * (1 + len(constants))
        network.register_to_config(out_channels=network.out_channels)

    @staticmethod
    def random_inputs(network: Flux2Transformer2DModel, batch: int) -> tuple[Tensor, Prompt]:
        """A latent of 32 places beside each other and a prompt of QWEN_TOKENS tokens, always the same ones."""
        config, draw = network.config, torch.Generator().manual_seed(0)
        x = torch.randn(batch, config.in_channels, 32, 32, generator=draw)
        embeds = torch.randn(batch, QWEN_TOKENS, config.joint_attention_dim, generator=draw)
        return x.to(network.device), Prompt(embeds).to(network.device)

    @property
    def image_size(self) -> int:
        """Side in pixels for which the autoencoder, and the network with it, was made."""
        return loaded(self.vae, "vae").config.sample_size

    @property
    def vae_factor(self) -> int:
        """Twice the factor of the autoencoder, for the patches."""
        return PATCH * super().vae_factor

    @property
    def network_factor(self) -> int:
        """The patches are the latent's own."""
        return 1

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Patches of the posterior's mode as the VAE's statistics normalise them, [B, 4 Z, h, w] in float32."""
        vae = loaded(self.vae, "vae")
        latent = in_own_dtype(lambda x, _: vae.encode(x).latent_dist.mode(), vae.dtype, image)
        mean, deviation = self._statistics()
        return (F.pixel_unshuffle(latent, PATCH) - mean) / deviation

    def unscale(self, latent: Tensor) -> Tensor:
        """The latent [B, Z, 2h, 2w] as the VAE itself gives and takes it, of a normalised one in patches."""
        mean, deviation = self._statistics()
        return F.pixel_shuffle(latent * deviation + mean, PATCH)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [1, 4 Z, 1, 1] of the patches, which the VAE's batch norm has counted."""
        vae = loaded(self.vae, "vae")
        mean, variance = (x.float().view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()


FAMILY = Flux2
