"""Functions that make an editor on a model, each for some lines of the catalogue."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eval.editors.blended import BlendedLatentDiffusion
from eval.editors.editor import Editor
from eval.editors.guided import GuidedEditor, usual_sharing
from eval.editors.guided_ddim import GuidedDdim
from eval.editors.guided_ddpm import GuidedDdpm
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.inpaint import Inpaint
from eval.editors.models import FewStepModel, ManyStepModel
from eval.editors.negative_prompt import ProximalNegativePrompt
from eval.editors.null_text import NullText
from eval.editors.pix2pix_zero import Pix2PixZero
from eval.editors.plug_and_play import PlugAndPlay
from eval.editors.stylediffusion import StyleDiffusion
from eval.editors.turboedit import OwnPixels, TurboEdit
from models.options import FitSchedule, Outside, StyleObjective

Build = Callable[[Any, str], Editor]
"""(FewStepModel or ManyStepModel, name) -> the editor of that name."""

BuildGuided = Callable[[ManyStepModel, str], GuidedEditor]
"""(model, name) -> an editor whose inversion keeps guided sampling on the picture."""

REFINEMENT = 10
"""Iterations at the first step where a fit starts from an amortised network: a tenth of the official schedule's."""

_FIT, SHORT_FIT = FitSchedule(), FitSchedule(iterations=REFINEMENT)
WITHOUT_NETWORK, REPLACING = FitSchedule(form="direct"), FitSchedule(form="replace")


def ours(mask: str | None = None, frozen: int = 0, outside: Outside = "source", align: bool = False) -> Build:
    """Return the builder of TurboEdit in one setting."""

    def build(on: FewStepModel, name: str) -> TurboEdit:
        return TurboEdit(on.pipeline, mask, on.mask_threshold, name, on.num_steps, frozen, outside, align)

    return build


def own_pixels(frozen: int = 0) -> Build:
    """Return the builder of TurboEdit whose edits have the picture's own pixels outside of the given mask."""
    return lambda on, name: OwnPixels(on.pipeline, None, on.mask_threshold, name, on.num_steps, frozen)


def style(
    fit: FitSchedule | None = _FIT,
    mapped: bool = False,
    p2plus: bool = True,
    kind: type[StyleDiffusion] = StyleDiffusion,
    **objective: Any,
) -> BuildGuided:
    """Return the builder of one form of StyleDiffusion: fitted, from an amortised network, or both.

    Its ablations are those of Li et al. 2023, figures 13 to 15.
    """

    def build(on: ManyStepModel, name: str) -> StyleDiffusion:
        assert on.tokens is not None, "StyleDiffusion needs CLIP's tokens"
        side = max(8, on.backbone.unet.config.sample_size // 4)
        settings = {"into": on.into} if mapped else objective
        wanted = StyleObjective(on.guidance, attention_side=side, **settings)
        sharing = usual_sharing(on.injection.c, on.injection.s)
        sharing = replace(sharing, unconditional=on.injection.u if p2plus else 0.0, values=on.injection.v)
        mapper = on.mapper if mapped else None
        return kind(on.backbone, on.ddim, on.tokens, wanted, fit, mapper, sharing, name)

    return build


def guided(editor: Callable[..., Editor], **options: Any) -> Build:
    """Return the builder of an editor on the model's own steps."""
    return lambda on, name: editor(on.backbone, on.ddim, on.guidance, **options)


def null_text(on: ManyStepModel, name: str) -> NullText:
    """Build null-text inversion with the model's optimisations."""
    return NullText(on.backbone, on.ddim, on.guidance, schedule=on.null_text)


def proximal(on: ManyStepModel, name: str) -> ProximalNegativePrompt:
    """Build proximal negative-prompt inversion with the model's proximal step."""
    return ProximalNegativePrompt(on.backbone, on.ddim, on.guidance, proximal=on.proximal)


def p2p(on: ManyStepModel, name: str) -> GuidedDdim:
    """Build DDIM inversion whose edits share attention as Prompt-to-Prompt does."""
    return GuidedDdim(on.backbone, on.ddim, on.guidance, usual_sharing(), name)


def ddpm(on: ManyStepModel, name: str) -> GuidedDdpm:
    """Build edit-friendly DDPM inversion, its source at guidance 1."""
    return GuidedDdpm(on.backbone, on.ddim, on.guidance, source_guidance=1.0, default_strength=on.ddpm_share)


def sdedit(inversion: str, build: BuildGuided) -> Build:
    """Return the builder of SDEdit with what the inversion of that name finds for every step."""
    return lambda on, name: GuidedSdedit(on.backbone, on.ddim, on.guidance, build(on, inversion))


def plug_and_play(held: bool = False) -> Build:
    """Return the builder of Plug-and-Play, its source held on the inversion or not."""
    return lambda on, name: PlugAndPlay(on.backbone, on.usual, on.guidance, on.negative, held)


def pix2pix_zero(held: bool = False) -> Build:
    """Return the builder of pix2pix-zero, its source held on the inversion or not."""
    return lambda on, name: Pix2PixZero(on.backbone, on.usual, on.guidance, held=held)


def blended(on: ManyStepModel, name: str) -> BlendedLatentDiffusion:
    """Build Blended Latent Diffusion on Stable Diffusion's usual steps."""
    return BlendedLatentDiffusion(on.backbone, on.usual, on.guidance)


def inpaint(on: ManyStepModel, name: str) -> Inpaint:
    """Build inpainting of the mask by a model that was trained for it."""
    return Inpaint(on.backbone, len(on.ddim), on.guidance)
