"""Plug-and-Play (Tumanyan et al. 2023): the image's features and self-attention, the target's words."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from eval.editors.decoder_layers import decoder_attention, second_attending_residual
from eval.editors.options import NEGATIVE
from eval.editors.source_branch import Branches, SourceBranchEditor
from models.attention import controlled
from models.attention_edits import SelfInjection
from models.backbone import Backbone
from models.ddim import Ddim
from models.style_transfer import features_of


class PlugAndPlay(SourceBranchEditor):
    """Features of decoder layer 4 for tau_f = 80 % of the steps, queries and keys of layers 4 to 11 for tau_A = 50 %.

    Layer 4 is the second of the coarsest decoder block that attends, in Stable Diffusion 1 as in any other UNet here;
    attention is taken in all of the decoder's from there on. The feature is what the layer's resnet adds to its input,
    as in the official code. Strength is the share of the steps that take no features, 0.2 by default; tau_A falls with
    tau_f in proportion.

    Args:
        held: the features are those of the inversion's pivots, as in the official code, and the row is called
            direct_plug_and_play; otherwise those of the sampled reconstruction, as PIE-Bench's runner has them by DDIM.
    """

    strengths = (0.0, 0.2, 0.4, 0.6)
    default_strength = 0.2

    def __init__(
        self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5, negative: str = NEGATIVE, held: bool = False
    ) -> None:
        super().__init__(backbone, ddim, guidance, negative, held)
        self.name = "direct_plug_and_play" if held else "plug_and_play"
        layers = [*chain.from_iterable(decoder_attention(backbone.unet))]
        self.layers = tuple(chain.from_iterable(layers[1:]))

    @contextmanager
    def control(self, step: int, strength: float, rows: Branches) -> Iterator[None]:
        """Features for the first 1 - strength of the steps, attention for 5/8 of those."""
        features = (1 - strength) * len(self.ddim)
        own_map = SelfInjection(rows.sources, rows.targets, self.layers, ("queries", "keys"))
        # Whole steps, rounded down as in the official code but for errors of the arithmetic
        taken = [second_attending_residual(self.backbone.unet)] if step < int(features + 1e-9) else []
        with (
            controlled(self.backbone.unet, [own_map] if step < int(0.625 * features + 1e-9) else []),
            features_of(taken, rows.source),
        ):
            yield
