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
from eval.editors.leditspp import LeditsPP
from eval.editors.masactrl import MasaCtrl
from eval.editors.negative_prompt import NegativePrompt, ProximalNegativePrompt
from eval.editors.null_text import NullText, NullTextSchedule
from eval.editors.pix2pix_zero import Pix2PixZero
from eval.editors.plug_and_play import NEGATIVE, PlugAndPlay
from eval.editors.references import Identity, Truth
from models.backbone import Backbone
from models.ddim import Ddim

ON_REQUEST = (
    "masactrl",
    "direct_masactrl",
    "plug_and_play",
    "direct_plug_and_play",
    "pix2pix_zero",
    "direct_pix2pix_zero",
    "leditspp",
)
"""Methods of PIE-Bench's table that eval.many_step compares only where they are asked for."""


def many_step_editors(
    backbone: Backbone,
    ddim: Ddim,
    guidance: float = 7.5,
    schedule: NullTextSchedule | None = None,
    negative: str = NEGATIVE,
) -> tuple[list[Editor], dict[str, str]]:
    """Methods that need the picture and two prompts, and the references; by name why others cannot run here.

    Args:
        ddim: the steps; 50 with an offset of 0 are those of PIE-Bench's runners of Prompt-to-Prompt and MasaCtrl. Its
            runners of pix2pix-zero and Plug-and-Play have an offset of 1, and so these have always.
        guidance: w; edit-friendly DDPM inversion's own, 15, is not taken; its source has 1, as in PIE-Bench's runner.
            LEDITS++ has a scale of its own.
        schedule: of null-text inversion. The paper's 10 iterations are meant for 50 steps: fewer steps need more.
        negative: Plug-and-Play's negative prompt; the official one means nothing to a backbone of scenes.
    """
    num_steps = len(ddim)
    usual = Ddim(backbone.schedule, num_steps)
    null_text = NullText(backbone, ddim, guidance, schedule=schedule)
    found: list[Editor] = [
        GuidedDdim(backbone, ddim, guidance),
        GuidedDdim(backbone, ddim, guidance, usual_sharing(backbone), name="ddim_p2p"),
        null_text,
        NegativePrompt(backbone, ddim, guidance),
        ProximalNegativePrompt(backbone, ddim, guidance),
        DirectInversion(backbone, ddim, guidance),
        MasaCtrl(backbone, ddim, guidance),
        MasaCtrl(backbone, ddim, guidance, held=True),
        PlugAndPlay(backbone, usual, guidance, negative),
        PlugAndPlay(backbone, usual, guidance, negative, held=True),
        Pix2PixZero(backbone, usual, guidance),
        Pix2PixZero(backbone, usual, guidance, held=True),
        GuidedDdpm(backbone, ddim, guidance, source_guidance=1.0),
        GuidedSdedit(backbone, ddim, guidance),
        GuidedSdedit(backbone, ddim, guidance, null_text),
        Identity(backbone),
        Truth(backbone),
        GuidedCeiling(backbone, ddim, guidance),
    ]
    left_out = {}
    try:
        found.append(LeditsPP(backbone, num_steps))
    except ValueError as error:
        left_out[LeditsPP.name] = str(error)
    return found, left_out


def masked_editors(
    backbone: Backbone, num_steps: int = 50, guidance: float = 7.5
) -> tuple[list[Editor], dict[str, str]]:
    """Methods that edit inside the user's mask; by name why others cannot run here."""
    found: list[Editor] = [BlendedLatentDiffusion(backbone, Ddim(backbone.schedule, num_steps), guidance)]
    try:
        return [*found, Inpaint(backbone, num_steps, guidance)], {}
    except ValueError as error:
        return found, {Inpaint.name: str(error)}
