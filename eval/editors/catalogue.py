"""All editors that an evaluation compares, on the generator of one exported encoder."""

from dataclasses import dataclass, replace

from torch import nn

from eval.editors.blended import BlendedLatentDiffusion
from eval.editors.ddim import DdimInversion
from eval.editors.ddpm import Ddpm
from eval.editors.editor import Editor, ReconstructingEditor
from eval.editors.guided import usual_sharing
from eval.editors.guided_ddim import DirectInversion, GuidedDdim
from eval.editors.guided_ddpm import GuidedDdpm
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.infedit import InfEdit
from eval.editors.inpaint import Inpaint
from eval.editors.leditspp import LeditsPP
from eval.editors.masactrl import MasaCtrl
from eval.editors.negative_prompt import NegativePrompt, ProximalNegativePrompt
from eval.editors.null_text import NullText, NullTextSchedule
from eval.editors.pix2pix_zero import Pix2PixZero
from eval.editors.plug_and_play import NEGATIVE, PlugAndPlay
from eval.editors.references import Ceiling, GuidedCeiling, Identity, Truth
from eval.editors.renoise import Renoise
from eval.editors.sdedit import Sdedit
from eval.editors.shifted_ddpm import ShiftedDdpm
from eval.editors.stylediffusion import StyleDiffusion
from eval.editors.turboedit import TurboEdit
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.generator import FewStepGenerator
from models.options import FitSchedule, Into, StyleObjective
from models.prompt_to_prompt import Sharing
from models.turboedit_pipeline import TurboEditPipeline

REFERENCES = ("identity", "truth", "ceiling")

MASK_THRESHOLD = 0.3
"""Of the automatic mask. Maps of 8 x 8 are coarse beside SDXL's 16 x 16, for which the paper takes 0.6: on validation
scenes 0.3 covers nine tenths of a local edit where 0.6 covers six (EXPERIMENTS.md)."""


_PAPERS_THRESHOLD, _PAPERS_RESOLUTION = 0.6, 16


def mask_threshold(pipeline: TurboEditPipeline) -> float:
    """Of the automatic mask: the paper's on maps as fine as SDXL's, a lower one on coarser maps."""
    fine = pipeline.config.attention_resolution >= _PAPERS_RESOLUTION
    return _PAPERS_THRESHOLD if fine else MASK_THRESHOLD


def generator_of(pipeline: TurboEditPipeline) -> FewStepGenerator:
    """The few-step generator on which the pipeline's encoder was trained."""
    return FewStepGenerator(pipeline.backbone, pipeline.timesteps)


def reconstructing_editors(pipeline: TurboEditPipeline) -> list[ReconstructingEditor]:
    """Methods whose inversion gives back the image: the encoder and the inversions it is compared with."""
    generator = generator_of(pipeline)
    return [TurboEdit(pipeline), DdimInversion(generator), Ddpm(generator), Ddpm(generator, residual=True)]


def all_editors(pipeline: TurboEditPipeline) -> list[Editor]:
    """Ours, the baselines on the same generator, and the references."""
    generator = generator_of(pipeline)
    return [
        TurboEdit(pipeline),
        TurboEdit(pipeline, "auto", MASK_THRESHOLD, name="turboedit_mask"),
        DdimInversion(generator),
        Ddpm(generator),
        Ddpm(generator, residual=True),
        Sdedit(generator),
        Identity(generator.backbone),
        Truth(generator.backbone),
        Ceiling(generator),
    ]


def few_step_editors(pipeline: TurboEditPipeline) -> list[Editor]:
    """Every method but ours on the generator of the encoder, without references."""
    generator = generator_of(pipeline)
    return [
        DdimInversion(generator),
        Ddpm(generator),
        Ddpm(generator, residual=True),
        Renoise(generator),
        ShiftedDdpm(generator.backbone),
        InfEdit(generator.backbone),
        Sdedit(generator),
    ]


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
