"""Places in a UNet's decoder, so that what papers say by numbers of Stable Diffusion 1 can be said of any UNet.

Its decoder has twelve layers, three in each of four blocks: a resnet, followed by attention in all but the coarsest
block. Those of the coarsest block that attends, 16 x 16 at 512 px, are the layers 3 to 5 (counted from 0).
"""

from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

Blocks = list[list[list[str]]]
"""Names of self-attention layers for each block that attends, coarsest first, and each of its layers."""


def decoder_attention(unet: UNet2DConditionModel) -> Blocks:
    """The self-attention of the decoder.

    Raises:
        ValueError: it has none.
    """
    found = [
        [
            [f"up_blocks.{number}.attentions.{layer}.transformer_blocks.{i}.attn1" for i in range(len(found))]
            for layer, found in enumerate(attention.transformer_blocks for attention in block.attentions)
        ]
        for number, block in enumerate(unet.up_blocks)
        if hasattr(block, "attentions")
    ]
    if not found:
        raise ValueError(f"the UNet's decoder has no attention; its blocks are {unet.config.up_block_types}")
    return found


def second_attending_residual(unet: UNet2DConditionModel) -> nn.Module:
    """Module that gives the second resnet of the coarsest block that attends (layer 4) what it adds to its input."""
    block: Any = next(block for block in unet.up_blocks if hasattr(block, "attentions"))
    return block.resnets[1].conv2
