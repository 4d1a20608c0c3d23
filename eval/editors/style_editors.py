"""StyleDiffusion in all the forms that an evaluation compares: fitted to each image, amortised, and the ablations."""

from dataclasses import dataclass, replace

from torch import nn

from eval.editors.editor import Editor
from eval.editors.guided import usual_sharing
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.stylediffusion import StyleDiffusion
from models.attention_edits import Into
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.prompt_to_prompt import Sharing
from models.stylediffusion import FitSchedule, StyleObjective

REFINEMENT = 10
"""Iterations at the first step where a fit starts from an amortised network: a tenth of the official schedule's."""

ABLATIONS = (
    "stylediffusion_no_p2plus",
    "stylediffusion_keys",
    "stylediffusion_both",
    "stylediffusion_direct",
    "stylediffusion_no_attention",
    "stylediffusion_paper_form",
    "stylediffusion_short",
)
"""Forms that answer a question about the method; a comparison with other methods leaves them out unless asked."""


@dataclass(frozen=True)
class Taus:
    """Shares of the steps in which the target takes from the source; tau_c and tau_s are an editor's strength."""

    v: float = 0.5
    """tau_v, of mapped values."""
    u: float = 0.5
    """tau_u, of self-attention maps in the unconditional passes (P2Plus); 0 is plain Prompt-to-Prompt."""


def style_editors(
    backbone: Backbone,
    ddim: Ddim,
    tokens: ImageTokens,
    guidance: float,
    mapper: nn.Module | None = None,
    into: Into = "values",
    taus: Taus | None = None,
) -> list[Editor]:
    """The paper's method with P2Plus, on SDEdit, amortised, and its ablation (table 4, figure 9).

    Args:
        tokens: of the images, from CLIP.
        guidance: of sampling.
        mapper: an amortised network, or None without one; `into` says where it puts its embeddings.
        taus: of all forms but the one without P2Plus.
    """
    taus = taus or Taus()
    objective = StyleObjective(guidance, attention_side=max(8, backbone.unet.config.sample_size // 4))
    sharing = replace(usual_sharing(backbone, cross=0.6, self_=0.6), unconditional=taus.u, values=taus.v)
    official = FitSchedule()
    fewer = replace(official, iterations=REFINEMENT)

    def form(
        name: str,
        objective: StyleObjective = objective,
        schedule: FitSchedule | None = official,
        mapper: nn.Module | None = None,
        sharing: Sharing = sharing,
    ) -> StyleDiffusion:
        return StyleDiffusion(backbone, ddim, tokens, objective, schedule, mapper, sharing, name)

    found: list[Editor] = [form("stylediffusion")]
    if mapper is not None:
        found += [
            form("stylediffusion_amortised", replace(objective, into=into), None, mapper),
            form("stylediffusion_refined", replace(objective, into=into), fewer, mapper),
        ]
    return [
        *found,
        GuidedSdedit(backbone, ddim, guidance, form("stylediffusion")),
        form("stylediffusion_no_p2plus", sharing=replace(sharing, unconditional=0.0)),
        form("stylediffusion_keys", replace(objective, into="keys")),
        form("stylediffusion_both", replace(objective, into="both")),
        form("stylediffusion_direct", schedule=replace(official, form="direct")),
        form("stylediffusion_no_attention", replace(objective, attention_weight=0.0)),
        form("stylediffusion_paper_form", schedule=replace(official, form="replace")),
        form("stylediffusion_short", schedule=fewer),
    ]
