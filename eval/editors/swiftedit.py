"""SwiftEdit (Nguyen et al. 2025) with its released weights: a trained one-step inversion and image tokens in attention.

The arithmetic is the released code's (Qualcomm-AI-research/SwiftEdit, c3fe640), which is not the paper's:

- F is called at t = 500 on the clean latent, which is sampled from the VAE's posterior;
- the generator gets alpha_999 z + sigma_999 eps, so 7 % of the clean latent z come along; the paper gives it eps alone;
- inside the mask image attention counts 0.2 and text attention 1; in the paper they count 0 and 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, full
from eval.editors.randomness import image_keys, image_noise
from eval.harness.fingerprints import network_fingerprint
from models.backbone import Backbone, freeze
from models.clip import ClipPixels
from models.text import Prompt, concatenate

INVERSION, GENERATOR, ADAPTER = "inverse_ckpt-120k/unet_ema", "sbv2_0.5", "ip_adapter_ckpt-90k/ip_adapter.bin"
"""The parts of the released archive."""

IMAGE_TOKENS = 4
_MID, _LAST = 500, 999
_CONTROLLED = "up_blocks"
"""Where the mask counts: the code also asks for "mid_blocks", but diffusers calls that one mid_block."""
_PIXELS = ClipPixels(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class ImageProjection(nn.Module):
    """An embedding of a picture [B, P] as tokens [B, 4, D] beside those of a prompt (IP-Adapter)."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding, IMAGE_TOKENS * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: Tensor) -> Tensor:
        """The tokens."""
        tokens: Tensor = self.norm(self.proj(embedding).unflatten(-1, (IMAGE_TOKENS, -1)))
        return tokens


@dataclass(frozen=True)
class MaskedScales:
    """The edit's rescaled attention for B source rows and their B target rows.

    Args:
        mask: the places that may change, [B, 1, h, w] of zeros and ones at the latent's size.
        inside: factor of the picture's tokens inside the mask; outside it the target has the source's image attention.
        text: factor of the target's text attention.
    """

    mask: Tensor
    inside: float
    text: float = 1.0

    def of_places(self, queries: int) -> Tensor:
        """The mask for a layer of that many queries, by nearest neighbours, [B, queries, 1]."""
        height, width = self.mask.shape[-2:]
        factor = round((height * width / queries) ** 0.5)
        size = (ceil(height / factor), ceil(width / factor))
        return F.interpolate(self.mask, size).flatten(2).transpose(1, 2)


class ImageAttention(nn.Module):
    """Cross attention to text and, with keys and values of its own, to the picture's tokens; an attention processor.

    Attributes:
        scales: how both are mixed, or None for their sum.
    """

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        width, out = layer.to_k.in_features, layer.to_k.out_features
        self.to_k_ip = nn.Linear(width, out, bias=False)
        self.to_v_ip = nn.Linear(width, out, bias=False)
        self.scales: MaskedScales | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The layer's output for `hidden_states` [B, Q, D] and the tokens [B, L + 4, D] of prompts and pictures."""
        words, picture = encoder_hidden_states[:, :-IMAGE_TOKENS], encoder_hidden_states[:, -IMAGE_TOKENS:]
        query = attn.to_q(hidden_states)
        text = _attend(attn, query, attn.to_k(words), attn.to_v(words))
        seen = _attend(attn, query, self.to_k_ip(picture), self.to_v_ip(picture))
        if self.scales is not None:
            (source, target), (seen_source, seen_target) = text.chunk(2), seen.chunk(2)
            places = self.scales.of_places(hidden_states.shape[1])
            text = torch.cat([source, self.scales.text * target])
            seen = torch.cat([seen_source, self.scales.inside * seen_target * places + seen_source * (1 - places)])
        output: Tensor = text + seen
        for module in attn.to_out:  # a projection and a dropout
            output = module(output)
        return output


def _attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of all heads, [B, Q, D] of projections [B, Q, D] and [B, L, D]."""
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=attn.scale).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class SwiftNetworks:
    """The networks of SwiftEdit.

    Args:
        backbone: VAE, text encoder and levels of noise of SD-Turbo, as the released code has them for F; for the
            generator it has those of Stable Diffusion 2.1, from which SD-Turbo was distilled.
        inversion: F.
        generator: SwiftBrush v2 with image attention.
        projection: image tokens of the picture's embedding, for the generator.
        vision: CLIP's vision encoder of IP-Adapter.
    """

    backbone: Backbone
    inversion: UNet2DConditionModel
    generator: UNet2DConditionModel
    projection: ImageProjection
    vision: CLIPVisionModelWithProjection

    @classmethod
    def load(
        cls, path: str, base: str, image_encoder: str, device: torch.device | str = "cpu", dtype: Any = torch.float32
    ) -> "SwiftNetworks":
        """Load the unpacked archive at `path`.

        Args:
            base: folder or hub id of SD-Turbo.
            image_encoder: folder of IP-Adapter's vision encoder, or folder or hub id with models/image_encoder.
            dtype: type of all but the VAE.

        Raises:
            ValueError: a part of the archive is missing, or the adapter's keys are not the networks'.
        """
        folder = Path(path)
        if missing := [name for name in (INVERSION, GENERATOR, ADAPTER) if not (folder / name).exists()]:
            raise ValueError(
                f"{path} has no {', '.join(missing)}; set --swiftedit.path to SwiftEdit's released weights, unpacked"
            )
        backbone = Backbone.load(base, device=device, dtype=dtype, parts=("vae", "text"))
        within = {} if (Path(image_encoder) / "config.json").is_file() else {"subfolder": "models/image_encoder"}
        vision = CLIPVisionModelWithProjection.from_pretrained(image_encoder, dtype=dtype, **within)
        inversion = UNet2DConditionModel.from_pretrained(folder / INVERSION, torch_dtype=dtype)
        generator = UNet2DConditionModel.from_pretrained(folder / GENERATOR, torch_dtype=dtype)
        projection = ImageProjection(vision.config.projection_dim, generator.config.cross_attention_dim)
        with_image_attention(generator)
        load_image_attention(torch.load(folder / ADAPTER, map_location="cpu", weights_only=True), generator, projection)
        for processor in generator.attn_processors.values():
            if isinstance(processor, ImageAttention):
                processor.to(dtype)
        for part in (inversion, generator, projection.to(dtype), vision):
            freeze(part.to(device))
        return cls(backbone, inversion, generator, projection, vision)


def with_image_attention(unet: UNet2DConditionModel) -> None:
    """Give every cross attention of `unet` an `ImageAttention`."""
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn2.processor"):
            processors[name] = ImageAttention(unet.get_submodule(name.removesuffix(".processor")))
    unet.set_attn_processor(processors)


def load_image_attention(
    state: dict[str, Tensor], generator: UNet2DConditionModel, projection: ImageProjection
) -> None:
    """Load ip_adapter.bin: the projection, the image attention of each layer, and the generator where it is in it.

    `adapter_modules.N` is the Nth of the UNet's attention processors in diffusers' order.

    Raises:
        ValueError: keys are missing or strange.
    """
    of = {name: _under(state, f"{name}.") for name in ("image_proj_model", "adapter_modules", "unet")}
    if strange := [key for key in state if key.split(".")[0] not in of]:
        raise ValueError(f"{ADAPTER} has {strange[0]!r}; expected keys below {', '.join(of)}")
    modules = nn.ModuleList(
        processor if isinstance(processor, nn.Module) else nn.Identity()
        for processor in generator.attn_processors.values()
    )
    plain = {key: value for key, value in of["unet"].items() if ".processor." not in key}
    wanted = {key for key in generator.state_dict() if ".processor." not in key}
    try:
        projection.load_state_dict(of["image_proj_model"])
        modules.load_state_dict(of["adapter_modules"])
        if plain:
            generator.load_state_dict({**generator.state_dict(), **plain})
    except RuntimeError as error:
        raise ValueError(f"{ADAPTER} does not fit the networks: {error}") from error
    if plain and plain.keys() != wanted:
        raise ValueError(f"{ADAPTER} has some of the generator's weights, not all: {sorted(wanted - plain.keys())[0]}")


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class SwiftState:
    """Images [B, 3, H, W], their sampled latents [B, 4, h, w], F's noise [B, 4, h, w] for the source, its prompt."""

    images: Tensor
    latent: Tensor
    noise: Tensor
    prompt: Prompt


class SwiftEdit:
    """One-step inversion by F, a mask from the difference of its noises for both prompts, one step of the generator.

    A place may change where |F(z, source) - F(z, target)|, averaged over channels, is above half of three times its
    mean. Strength is the factor of image attention inside the mask, 0.2 as released: the lower, the stronger the edit.

    Args:
        networks: the released weights.
        seed: seed of the sample of the VAE's posterior.

    Attributes:
        last_mask: the mask of the last edit.
    """

    name = "swiftedit"
    strengths = (0.6, 0.4, 0.2, 0.0)
    num_steps = 1

    def __init__(self, networks: SwiftNetworks, seed: int = 0) -> None:
        self.parts = networks
        self.seed = seed
        self.networks = (networks.inversion, networks.generator)
        self.last_mask: Tensor | None = None
        abar = networks.backbone.schedule.alphas_cumprod[_LAST].item()
        self.alpha, self.sigma = abar**0.5, (1 - abar) ** 0.5

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits."""
        parts = (*self.parts.backbone.modules(), *self.networks, self.parts.projection, self.parts.vision)
        return {"networks": [network_fingerprint(part) for part in parts], "seed": self.seed}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """F's noise for the source's prompt: one evaluation."""
        vae = self.parts.backbone.vae
        assert vae is not None
        posterior = vae.encode(images.to(vae.dtype)).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        latent = (mean + deviation * image_noise(image_keys(images), "swiftedit", self.seed, mean)) * (
            vae.config.scaling_factor
        )
        prompt = self.parts.backbone.encode_text(prompts, self.parts.backbone.size_of(latent))
        noise = self._noise(latent, prompt)
        return InvertedImages(tuple(prompts), {float(_LAST): noise}, SwiftState(images, latent, noise, prompt))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """F's noise for the target gives the mask; source and target go through the generator side by side."""
        state: SwiftState = inversion.state
        target = self.parts.backbone.encode_text(request.prompt, self.parts.backbone.size_of(state.latent))
        difference = (state.noise - self._noise(state.latent, target)).abs().mean(1, keepdim=True)
        self.last_mask = (difference > 0.5 * 3.0 * difference.mean((2, 3), keepdim=True)).float()
        inside = 0.2 if request.strength is None else request.strength
        edited = self._generate(state, concatenate([state.prompt, target]), MaskedScales(self.last_mask, inside))
        return decode_latents(self.parts.backbone, edited)

    def _noise(self, latent: Tensor, prompt: Prompt) -> Tensor:
        """F's output [B, 4, h, w]."""
        dtype = self.parts.inversion.dtype
        output = self.parts.inversion(latent.to(dtype), full(_MID, latent), prompt.embeds.to(dtype)).sample
        return output.float()

    def _generate(self, state: SwiftState, prompts: Prompt, scales: MaskedScales) -> Tensor:
        """The generator's estimate of x0 [B, 4, h, w] for the target rows of `prompts` [2 B]."""
        generator, dtype = self.parts.generator, self.parts.generator.dtype
        seen = self.parts.vision(_PIXELS(state.images).to(self.parts.vision.dtype)).image_embeds
        tokens = torch.cat([prompts.embeds.to(dtype), self.parts.projection(seen).repeat(2, 1, 1)], dim=1)
        x = (self.alpha * state.latent + self.sigma * state.noise).repeat(2, 1, 1, 1)
        for name, processor in generator.attn_processors.items():
            if isinstance(processor, ImageAttention) and name.startswith(_CONTROLLED):
                processor.scales = scales
        output = generator(x.to(dtype), full(_LAST, x), tokens).sample.float()
        return ((x - self.sigma * output) / self.alpha).chunk(2)[1]
