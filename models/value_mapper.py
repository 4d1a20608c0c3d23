"""StyleDiffusion's mapping networks: CLIP's image tokens -> what cross attention takes its values from.

A network gives a `Modulation` (scale a, shift b) of the prompt's token embeddings: values = a * text + b. That is the
official code's form; with a = 0 it is the paper's, which puts the network's output in the place of the text.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .options import Form


@dataclass(frozen=True)
class Modulation:
    """values = scale * text + shift, for B images.

    Args:
        scale, shift: [B, L, D].
    """

    scale: Tensor
    shift: Tensor

    def __call__(self, embeds: Tensor) -> Tensor:
        """Values [B, L, D] for the token embeddings `embeds` [B, L, D] of a prompt."""
        return self.scale.to(embeds) * embeds + self.shift.to(embeds)

    def __add__(self, other: "Modulation") -> "Modulation":
        return Modulation(self.scale + other.scale, self.shift + other.shift)

    def copy(self) -> "Modulation":
        """A copy without gradients, which stays what it is when a parameter in it moves on."""
        return Modulation(self.scale.detach().clone(), self.shift.detach().clone())


class TokenMapper(nn.Module):
    """B networks side by side, each of one image at one timestep (StyleDiffusion, table 1; official code).

    Tokens are the channels of 1x1 convolutions whose length is the embedding's width D:
    N image tokens -> C, C -> C, batch norm, leaky ReLU, C -> C; C = L (`replace`, the paper) or 2 L (`modulate`, the
    official code, whose halves are scale and shift). The official batch norm always works on its one image's own D
    positions, which is what is computed here, so no image knows of another one. All start with the same weights.

    Args:
        tokens: N and D of the image's tokens.
        text: L and D of the text's; where the widths differ the image's tokens are projected first.
        form: what the output means.
        images: B.
        at_zero: start at a modulation by zero, to be added to another one.
    """

    def __init__(
        self,
        tokens: tuple[int, int],
        text: tuple[int, int],
        form: Form = "modulate",
        images: int = 1,
        at_zero: bool = False,
    ) -> None:
        super().__init__()
        self.form = form
        self.length = text[0]
        channels = self.length if form == "replace" else 2 * self.length
        shapes = [(channels, tokens[0]), (channels, channels), (channels, channels)]
        self.weights = nn.ParameterList(_uniform(images, *shape, fan_in=shape[1]) for shape in shapes)
        self.biases = nn.ParameterList(_uniform(images, shape[0], 1, fan_in=shape[1]) for shape in shapes)
        self.norm_weight = nn.Parameter(torch.ones(images, channels, 1))
        self.norm_bias = nn.Parameter(torch.zeros(images, channels, 1))
        self.width = _uniform(images, tokens[1], text[1], fan_in=tokens[1]) if tokens[1] != text[1] else None
        if at_zero:
            nn.init.zeros_(self.weights[2])
            nn.init.zeros_(self.biases[2])

    def forward(self, image_tokens: Tensor) -> Modulation:
        """Image tokens [B, N, D] -> the modulation [B, L, D]."""
        x = image_tokens if self.width is None else image_tokens @ self.width
        x = self._conv(0, x)
        x = F.layer_norm(self._conv(1, x), x.shape[-1:])  # each channel over its positions: a batch norm of one image
        x = self._conv(2, F.leaky_relu(x * self.norm_weight + self.norm_bias))
        if self.form == "replace":
            return Modulation(torch.zeros_like(x), x)
        return Modulation(x[:, : self.length], x[:, self.length :])

    def _conv(self, number: int, x: Tensor) -> Tensor:
        return self.weights[number] @ x + self.biases[number]


class DirectValues(nn.Module):
    """The embeddings themselves as parameters, without a network: the paper's ablation.

    Args:
        start: embeddings [B, L, D] to begin with.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(start.detach().clone())

    def forward(self, image_tokens: Tensor) -> Modulation:
        """The modulation [B, L, D] that replaces the text, whatever the image."""
        return Modulation(torch.zeros_like(self.values), self.values)


class AmortisedMapper(ModelMixin, ConfigMixin):
    """One network for all images and timesteps.

    The text's tokens ask the image's tokens: blocks of cross attention and an MLP, modulated by the timestep (FiLM).
    Norms are layer norms, so nothing depends on the batch; the last layer starts at zero, so that training starts from
    the stock model.

    Args:
        tokens: N and D of the image's tokens.
        text: L and D of the text's.
        form: what the output means.
        width: width of the blocks; depth: number of blocks; heads: number of attention heads.
    """

    @register_to_config
    def __init__(
        self,
        tokens: tuple[int, int],
        text: tuple[int, int],
        form: Form = "modulate",
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.form = form
        self.width = width
        self.from_image = nn.Sequential(nn.LayerNorm(tokens[1]), nn.Linear(tokens[1], width))
        self.from_text = nn.Sequential(nn.LayerNorm(text[1]), nn.Linear(text[1], width))
        self.image_places = nn.Parameter(0.02 * torch.randn(1, tokens[0], width))
        self.text_places = nn.Parameter(0.02 * torch.randn(1, text[0], width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        last = nn.Linear(width, 2 * text[1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.to_modulation = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, image_tokens: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens [B, N, D], timesteps [B], the source's prompt [B, L, D] -> scale and shift of a Modulation.

        As bare tensors, since DeepSpeed finds no others in what a module gives.
        """
        image = self.from_image(image_tokens) + self.image_places
        x = self.from_text(prompt_embeds) + self.text_places
        time = self.time(_sinusoids(t, self.width).to(x))
        for block in self.blocks:
            x = block(x, image, time)
        scale, shift = self.to_modulation(x).chunk(2, dim=-1)
        if self.form == "replace":
            return torch.zeros_like(scale), prompt_embeds + shift
        return 1 + scale, shift


class _Block(nn.Module):
    """Self attention over the text's tokens, cross attention to the image's, an MLP; each after a FiLM by the time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.among_text = nn.MultiheadAttention(width, heads, batch_first=True)
        self.to_image = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, image: Tensor, time: Tensor) -> Tensor:
        y = self._film(0, x, time)
        x = x + self.among_text(y, y, y, need_weights=False)[0]
        x = x + self.to_image(self._film(1, x, time), image, image, need_weights=False)[0]
        return x + self.mlp(self._film(2, x, time))

    def _film(self, number: int, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.films[number](time)[:, None].chunk(2, dim=-1)
        return self.norms[number](x) * (1 + scale) + shift


def _uniform(images: int, *shape: int, fan_in: int) -> nn.Parameter:
    """Draw weights as torch does for convolutions, uniform within 1 / sqrt(fan_in), the same for every image."""
    weight = (2 * torch.rand(shape) - 1) / math.sqrt(fan_in)
    return nn.Parameter(weight.expand(images, *shape).clone())


def _sinusoids(t: Tensor, width: int) -> Tensor:
    """Sines and cosines [B, width] of timesteps [B]."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
