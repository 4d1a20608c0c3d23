"""StyleDiffusion in all the forms that an evaluation compares: fitted to each image, amortised, and the ablations."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from eval.editors.guided import usual_sharing
from eval.editors.stylediffusion import StyleDiffusion
from models.backbone import Backbone
from models.ddim import Ddim
from models.image_tokens import ImageTokens
from models.stylediffusion import FitSchedule, StyleObjective

REFINEMENT = 10
"""Iterations at the first step where a fit starts from an amortised network: a tenth of the official schedule's."""


def style_editors(
    backbone: Backbone, ddim: Ddim, tokens: ImageTokens, guidance: float, mapper: nn.Module | None = None
) -> Sequence[StyleDiffusion]:
    """The paper's method with P2Plus (tau_u = 0.5), its ablation (table 4, figure 9), and the amortised form.

    Args:
        tokens: of the images, from CLIP.
        guidance: of sampling.
        mapper: an amortised network, or None without one.
    """
    objective = StyleObjective(guidance, attention_side=max(8, backbone.unet.config.sample_size // 4))
    sharing = replace(usual_sharing(backbone, cross=0.6, self_=0.6), unconditional=0.5, values=0.5)
    official = FitSchedule()

    def fitted(
        name: str, objective: StyleObjective = objective, schedule: FitSchedule = official, p2plus: bool = True
    ) -> StyleDiffusion:
        shared = sharing if p2plus else replace(sharing, unconditional=0.0)
        return StyleDiffusion(backbone, ddim, tokens, objective, schedule, None, shared, name)

    found = [
        fitted("stylediffusion"),
        fitted("stylediffusion_no_p2plus", p2plus=False),
        fitted("stylediffusion_paper_form", schedule=replace(official, form="replace")),
        fitted("stylediffusion_keys", replace(objective, into="keys")),
        fitted("stylediffusion_both", replace(objective, into="both")),
        fitted("stylediffusion_direct", schedule=replace(official, form="direct")),
        fitted("stylediffusion_no_attention", replace(objective, attention_weight=0.0)),
        fitted("stylediffusion_short", schedule=replace(official, iterations=REFINEMENT)),
    ]
    if mapper is not None:
        refinement = replace(official, iterations=REFINEMENT)
        found += [
            StyleDiffusion(backbone, ddim, tokens, objective, None, mapper, sharing, "stylediffusion_amortised"),
            StyleDiffusion(backbone, ddim, tokens, objective, refinement, mapper, sharing, "stylediffusion_refined"),
        ]
    return found
