"""All editors that an evaluation compares on one backbone of many guided steps."""

from eval.editors.blended import BlendedLatentDiffusion
from eval.editors.direct import DirectInversion
from eval.editors.editor import Editor
from eval.editors.guided import usual_sharing
from eval.editors.guided_ceiling import GuidedCeiling
from eval.editors.guided_ddim import GuidedDdim
from eval.editors.guided_ddpm import GuidedDdpm
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.inpaint import Inpaint
from eval.editors.negative_prompt import NegativePrompt, ProximalNegativePrompt
from eval.editors.null_text import NullText, NullTextSchedule
from eval.editors.references import Identity, Truth
from models.backbone import Backbone
from models.ddim import Ddim


def many_step_editors(
    backbone: Backbone, num_steps: int = 50, guidance: float = 7.5, schedule: NullTextSchedule | None = None
) -> list[Editor]:
    """Methods that need the picture and two prompts, and the references.

    Args:
        num_steps: of DDIM, with an offset of 1 (Stable Diffusion's).
        guidance: w; edit-friendly DDPM inversion's own, 15, is not taken; its source has 1, as in PIE-Bench's runner.
        schedule: of null-text inversion. The paper's 10 iterations are meant for 50 steps: fewer steps need more.
    """
    ddim = Ddim(backbone.schedule, num_steps)
    null_text = NullText(backbone, ddim, guidance, schedule=schedule)
    return [
        GuidedDdim(backbone, ddim, guidance),
        GuidedDdim(backbone, ddim, guidance, usual_sharing(backbone), name="ddim_p2p"),
        null_text,
        NegativePrompt(backbone, ddim, guidance),
        ProximalNegativePrompt(backbone, ddim, guidance),
        DirectInversion(backbone, ddim, guidance),
        GuidedDdpm(backbone, ddim, guidance, source_guidance=1.0),
        GuidedSdedit(backbone, ddim, guidance),
        GuidedSdedit(backbone, ddim, guidance, null_text),
        Identity(backbone),
        Truth(backbone),
        GuidedCeiling(backbone, ddim, guidance),
    ]


def masked_editors(backbone: Backbone, num_steps: int = 50, guidance: float = 7.5) -> list[Editor]:
    """Methods that edit inside the user's mask."""
    return [
        BlendedLatentDiffusion(backbone, Ddim(backbone.schedule, num_steps), guidance),
        Inpaint(backbone, num_steps, guidance),
    ]
