"""Attention written down plainly, for references: projections here, what happens between them in the test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from models.text import Prompt

Attend = Callable[[str, bool, Tensor, Tensor, Tensor], Tensor]
"""(name of the layer, whether it is cross attention, q, k, v [B, heads, L, d]) -> [B, heads, Q, d]."""

SHORT, LONG = "ab cd", "ab xy cd"
FROM_SHORT = {0: 0, 1: 1, 2: 2, 5: 3, 6: 4, 7: 5} | {j: j for j in range(8, 77)}
"""Columns of LONG's maps and those of SHORT's that belong to the same token or to padding; x and y are new. The tiny
tokenizer spells: "ab cd" is <start>, a, b, c, d, <end>."""


class PlainProcessor:
    def __init__(self, name: str, attend: Attend) -> None:
        self.name, self.attend = name, attend

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        cross = encoder_hidden_states is not None
        seen = encoder_hidden_states if cross else hidden_states
        pairs = ((attn.to_q, hidden_states), (attn.to_k, seen), (attn.to_v, seen))
        q, k, v = (torch.stack(project(x).chunk(attn.heads, -1), 1) for project, x in pairs)
        mixed = self.attend(self.name, cross, q, k, v)
        return attn.to_out[0](torch.cat(list(mixed.unbind(1)), -1))


def softmax_maps(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)


@contextmanager
def plain_attention(unet: nn.Module, attend: Attend) -> Iterator[None]:
    """Within the block every attention layer of `unet` goes through `attend`."""
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
    before = {name: layer.processor for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.processor = PlainProcessor(name, attend)
    yield
    for name, layer in layers.items():
        layer.processor = before[name]


def with_columns(target: Tensor, source: Tensor) -> Tensor:
    """LONG's maps [..., 77] with the columns that SHORT's `source` has, too."""
    changed = target.clone()
    for to, origin in FROM_SHORT.items():
        changed[..., to] = source[..., origin]
    return changed


class ExactGenerator:
    """A UNet in float64 and the definitions of epsilon and v, without the project's schedule."""

    def __init__(self, unet: nn.Module, alphas_cumprod: Tensor, prediction_type: str) -> None:
        self.unet = unet
        self.abar = [*alphas_cumprod.double().tolist(), 1.0]  # abar[-1]: no noise
        self.velocity = prediction_type == "v_prediction"

    def x0_and_noise(self, x: Tensor, prompt: Prompt, t: int) -> tuple[Tensor, Tensor]:
        a, b = self.abar[t] ** 0.5, (1 - self.abar[t]) ** 0.5
        added = None
        if prompt.pooled is not None and prompt.time_ids is not None:
            added = {"text_embeds": prompt.pooled.double(), "time_ids": prompt.time_ids.double()}
        output = self.unet(x, t, prompt.embeds.double(), added_cond_kwargs=added).sample
        if self.velocity:
            return a * x - b * output, b * x + a * output
        return (x - b * output) / a, output
