"""MasaCtrl (Cao et al. 2023): the target's self-attention looks at the image instead of at itself."""

from contextlib import AbstractContextManager
from itertools import chain

from eval.editors.decoder_layers import decoder_attention
from eval.editors.source_branch import Branches, SourceBranchEditor
from models.attention import controlled
from models.attention_edits import SelfInjection
from models.backbone import Backbone
from models.ddim import Ddim


class MasaCtrl(SourceBranchEditor):
    """Mutual self-attention: keys and values from the source's branch, from step S = 4 of 50 and layer L = 10 of 16 on.

    Layers 10 to 15 of Stable Diffusion 1 are the decoder's, without those of its coarsest block that attends; of
    another UNet they are the same (64 to 69 of SDXL's 70), and all of the decoder's where only one block attends.
    Layout is decided in the steps before S, so strength is the share of the steps before it: 4 of 50 by default.

    Args:
        held: direct inversion's pivots are the source's branch; the row is then called direct_masactrl.
    """

    strengths = (0.04, 0.08, 0.2, 0.4)
    default_strength = 0.08

    def __init__(self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5, held: bool = False) -> None:
        super().__init__(backbone, ddim, guidance, held=held)
        self.name = "direct_masactrl" if held else "masactrl"
        blocks = decoder_attention(backbone.unet)
        self.layers = tuple(chain.from_iterable(chain.from_iterable(blocks[1:] or blocks)))

    def control(self, step: int, strength: float, rows: Branches) -> AbstractContextManager[object]:
        """Both rows of the target attend to the source."""
        mutual = SelfInjection(rows.sources, rows.targets, self.layers, ("keys", "values"))
        active = step >= round(strength * len(self.ddim))
        return controlled(self.backbone.unet, [mutual] if active else [])
