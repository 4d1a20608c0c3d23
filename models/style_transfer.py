"""StyleDiffusion's style transfer: the content image's decoder features with the style image's mapped values.

Li et al. 2023, section 4: the network is fitted on the style image; the content image is inverted by DDIM, and the
spatial features of its decoder layers replace those of the picture that is sampled with the style's values. The paper
names neither layers nor steps; both are options here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .attention import controlled
from .attention_edits import ContextInjection
from .backbone import Backbone
from .ddim import Ddim, predict_noise
from .text import Prompt, concatenate


@torch.no_grad()
def transfer_style(
    backbone: Backbone,
    ddim: Ddim,
    pivots: Tensor,
    content: Prompt,
    style: Prompt,
    null: Prompt,
    values: Sequence[Callable[[Tensor], Tensor]],
    guidance: float,
    blocks: Sequence[int] = (1,),
    share: float = 0.6,
) -> Tensor:
    """The stylised latents [B, 4, h, w].

    The rows of one evaluation are [content at its pivot, null, style], B of each; both sampled ones take the content's
    features.

    Args:
        pivots: latents of the content images [n + 1, B, 4, h, w] inverted at guidance 1; sampling starts at
            their noisiest.
        content, style, null: prompts [B] of the content images, of the style images, and the empty one.
        values: modulations of the style images, one for each step (models.stylediffusion.fit_modulations).
        guidance: guidance scale of sampling.
        blocks: up blocks of the UNet whose resnets' features are taken, 0 the coarsest.
        share: share of the steps, from the noisiest on, in which they are.

    Raises:
        ValueError: a block that the UNet lacks, or a share outside of [0, 1].
    """
    layers = decoder_layers(backbone.unet, blocks)
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected a share of the steps between 0 and 1")
    count = pivots.shape[1]
    from_content = slice(0, count)
    x = pivots[0]
    for step, t in enumerate(ddim.timesteps):
        mapped = ContextInjection(values=values[step](style.embeds), rows=slice(2 * count, 3 * count))
        taken = layers if step < share * len(ddim) else []
        with controlled(backbone.unet, [mapped]), features_of(taken, from_content):
            rows = torch.cat([pivots[step], x, x])
            noise = predict_noise(backbone, rows, t, concatenate([content, null, style]))
        _, unconditional, conditional = noise.chunk(3)
        x = ddim.move(x, unconditional + guidance * (conditional - unconditional), step, step + 1)
    return x


def decoder_layers(unet: UNet2DConditionModel, blocks: Sequence[int]) -> list[nn.Module]:
    """The resnets of some up blocks.

    Raises:
        ValueError: a block that the UNet lacks.
    """
    ups = list(unet.up_blocks)
    wrong = [block for block in blocks if not 0 <= block < len(ups)]
    if wrong:
        raise ValueError(f"blocks {wrong} are not there; the UNet has the up blocks 0 to {len(ups) - 1}")
    return [layer for block in blocks for layer in ups[block].resnets]


@contextmanager
def features_of(layers: Sequence[nn.Module], source: slice) -> Iterator[None]:
    """Within the block the output of each of `layers` is that of the rows `source`, repeated for the whole batch."""

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        taken = output[source]
        return taken.repeat(len(output) // len(taken), *(1,) * (output.ndim - 1))

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(replace))
        yield
