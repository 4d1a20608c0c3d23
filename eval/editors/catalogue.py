"""All editors that are compared, a line each: names, titles and colours, what each needs, and who compares it.

To compare another editor, write its file and add its line. The order here is that of tables and figures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from typing import Any

from torch import nn

from eval.editors.blended import BlendedLatentDiffusion
from eval.editors.ddim import DdimInversion
from eval.editors.ddpm import Ddpm
from eval.editors.editor import Editor
from eval.editors.few_steps import generator_of
from eval.editors.guided import GuidedEditor, usual_sharing
from eval.editors.guided_ddim import DirectInversion, GuidedDdim
from eval.editors.guided_ddpm import GuidedDdpm
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.imagic import Imagic
from eval.editors.infedit import InfEdit
from eval.editors.inpaint import Inpaint
from eval.editors.leditspp import LeditsPP
from eval.editors.masactrl import MasaCtrl
from eval.editors.negative_prompt import NegativePrompt, Proximal, ProximalNegativePrompt
from eval.editors.null_text import NullText
from eval.editors.options import NEGATIVE, ImagicConfig, InjectionSchedule, NullTextSchedule
from eval.editors.pix2pix_zero import Pix2PixZero
from eval.editors.plug_and_play import PlugAndPlay
from eval.editors.references import Ceiling, GuidedCeiling, Identity, Truth
from eval.editors.renoise import Renoise
from eval.editors.sdedit import Sdedit
from eval.editors.shifted_ddpm import ShiftedDdpm
from eval.editors.stylediffusion import StyleDiffusion
from eval.editors.turboedit import TurboEdit, mask_threshold
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.generator import FewStepGenerator
from models.options import FitSchedule, Into, StyleObjective
from models.turboedit_pipeline import TurboEditPipeline


class Command(Flag):
    """The commands that compare editors."""

    NONE = 0
    SCENES = auto()
    RECONSTRUCTION = auto()
    MANY_STEP = auto()
    PIE = auto()


class Needs(Flag):
    """Needs of an editor beside the model, the picture and two prompts."""

    NOTHING = 0
    LONG = auto()
    """Detailed prompts."""
    CAPTIONER = auto()
    """A captioner, which describes the picture and changes the description by the instruction."""
    MASK = auto()
    """The user's mask."""
    TOKENS = auto()
    """CLIP's tokens of the picture."""
    MAPPER = auto()
    """An amortised mapping network (and its tokens)."""


@dataclass(frozen=True)
class FewStepModel:
    """An exported encoder and its generator; `num_steps` of its timesteps for TurboEdit, None for all."""

    pipeline: TurboEditPipeline
    num_steps: int | None = None

    @property
    def generator(self) -> FewStepGenerator:
        """The few-step generator on which the encoder was trained."""
        return generator_of(self.pipeline)

    @property
    def backbone(self) -> Backbone:
        """The generator's networks."""
        return self.pipeline.backbone

    @property
    def meets(self) -> Needs:
        """Everything but StyleDiffusion's parts: prompts and masks come with the pictures."""
        return Needs.LONG | Needs.CAPTIONER | Needs.MASK


@dataclass(frozen=True)
class ManyStepModel:
    """A model that samples in many guided steps, with the settings of the editors on it.

    Args:
        ddim: the steps; 50 with an offset of 0 are those of PIE-Bench's runners of Prompt-to-Prompt and MasaCtrl. Its
            runners of pix2pix-zero and Plug-and-Play have an offset of 1, and so these have always.
        guidance: w; edit-friendly DDPM inversion's own, 15, is not taken; its source has 1, as in PIE-Bench's runner.
            LEDITS++ has a scale of its own.
        null_text: null-text inversion's optimisations. The paper's 10 iterations are meant for 50 steps: fewer steps
            need more.
        negative: Plug-and-Play's negative prompt; the official one means nothing to a backbone of scenes.
        imagic: the fits of Imagic.
        proximal: the proximal step of ProxNPI.
        ddpm_share: the share of the steps that DDPM inversion samples by default.
        tokens: CLIP's tokens of pictures, or None without StyleDiffusion.
        mapper: an amortised mapping network, or None; `into` says where it puts its embeddings.
        injection: shares that StyleDiffusion's edits take from the source, in all forms but the one without P2Plus.
    """

    backbone: Backbone
    ddim: Ddim
    guidance: float = 7.5
    null_text: NullTextSchedule | None = None
    negative: str = NEGATIVE
    imagic: ImagicConfig | None = None
    proximal: Proximal = field(default_factory=Proximal)
    ddpm_share: float = 0.64
    tokens: ImageTokens | None = None
    mapper: nn.Module | None = None
    into: Into = "values"
    injection: InjectionSchedule = field(default_factory=InjectionSchedule)

    @property
    def usual(self) -> Ddim:
        """Equally many steps with Stable Diffusion's offset."""
        return Ddim(self.backbone.schedule, len(self.ddim))

    @property
    def meets(self) -> Needs:
        """Masks, and the parts of StyleDiffusion that are there."""
        tokens = Needs.NOTHING if self.tokens is None else Needs.TOKENS
        return Needs.MASK | tokens | (Needs.NOTHING if self.mapper is None else Needs.MAPPER)


Build = Callable[[Any, str], Editor]
"""(FewStepModel or ManyStepModel, name) -> the editor of that name."""

BuildGuided = Callable[[ManyStepModel, str], GuidedEditor]
"""(model, name) -> an editor whose inversion keeps guided sampling on the picture."""


@dataclass(frozen=True)
class Known:
    """An editor in one setting, as evaluations know it.

    Args:
        name: name in results.
        title: name as people read it.
        build: makes it on a model; None where a command makes it with settings of its own.
        default: the commands that compare it unless told otherwise.
        asked: the commands that compare it where its name is given.
        needs: needs beside the model.
        colour: colour in charts; None for grey.
        reference: no method, but what methods are read against.
        fewer: there is also a form for each smaller number of the encoder's steps, NAME_N.
        partial: some models cannot do it, for which `build` raises ValueError.
    """

    name: str
    title: str
    build: Build | None = None
    default: Command = Command.NONE
    asked: Command = Command.NONE
    needs: Needs = Needs.NOTHING
    colour: str | None = None
    reference: bool = False
    fewer: bool = False
    partial: bool = False


def _ours(mask: str | None = None, frozen: int = 0) -> Build:
    """TurboEdit in one setting."""

    def build(on: FewStepModel, name: str) -> TurboEdit:
        return TurboEdit(on.pipeline, mask, mask_threshold(on.pipeline), name, on.num_steps, frozen)

    return build


REFINEMENT = 10
"""Iterations at the first step where a fit starts from an amortised network: a tenth of the official schedule's."""

_FIT, _SHORT_FIT = FitSchedule(), FitSchedule(iterations=REFINEMENT)
_WITHOUT_NETWORK, _REPLACING = FitSchedule(form="direct"), FitSchedule(form="replace")


def _style(fit: FitSchedule | None = _FIT, mapped: bool = False, p2plus: bool = True, **objective: Any) -> BuildGuided:
    """StyleDiffusion in one form: fitted, from an amortised network, or both (Li et al. 2023, table 4, figure 9)."""

    def build(on: ManyStepModel, name: str) -> StyleDiffusion:
        assert on.tokens is not None, "StyleDiffusion needs CLIP's tokens"
        side = max(8, on.backbone.unet.config.sample_size // 4)
        settings = {"into": on.into} if mapped else objective
        wanted = StyleObjective(on.guidance, attention_side=side, **settings)
        sharing = usual_sharing(on.backbone, cross=0.6, self_=0.6)
        sharing = replace(sharing, unconditional=on.injection.u if p2plus else 0.0, values=on.injection.v)
        mapper = on.mapper if mapped else None
        return StyleDiffusion(on.backbone, on.ddim, on.tokens, wanted, fit, mapper, sharing, name)

    return build


def _guided(editor: Callable[..., Editor], **options: Any) -> Build:
    """An editor on the model's own steps."""
    return lambda on, name: editor(on.backbone, on.ddim, on.guidance, **options)


def _null_text(on: ManyStepModel, name: str) -> NullText:
    return NullText(on.backbone, on.ddim, on.guidance, schedule=on.null_text)


def _proximal(on: ManyStepModel, name: str) -> ProximalNegativePrompt:
    return ProximalNegativePrompt(on.backbone, on.ddim, on.guidance, proximal=on.proximal)


def _p2p(on: ManyStepModel, name: str) -> GuidedDdim:
    return GuidedDdim(on.backbone, on.ddim, on.guidance, usual_sharing(on.backbone), name)


def _ddpm(on: ManyStepModel, name: str) -> GuidedDdpm:
    return GuidedDdpm(on.backbone, on.ddim, on.guidance, source_guidance=1.0, default_strength=on.ddpm_share)


def _sdedit(inversion: str, build: BuildGuided) -> Build:
    """SDEdit with what the inversion of that name finds for every step."""
    return lambda on, name: GuidedSdedit(on.backbone, on.ddim, on.guidance, build(on, inversion))


def _plug_and_play(held: bool = False) -> Build:
    return lambda on, name: PlugAndPlay(on.backbone, on.usual, on.guidance, on.negative, held)


def _pix2pix_zero(held: bool = False) -> Build:
    return lambda on, name: Pix2PixZero(on.backbone, on.usual, on.guidance, held=held)


def _blended(on: ManyStepModel, name: str) -> BlendedLatentDiffusion:
    return BlendedLatentDiffusion(on.backbone, on.usual, on.guidance)


def _inpaint(on: ManyStepModel, name: str) -> Inpaint:
    return Inpaint(on.backbone, len(on.ddim), on.guidance)


_SCENES, _RECONSTRUCTION, _MANY, _PIE = Command.SCENES, Command.RECONSTRUCTION, Command.MANY_STEP, Command.PIE
_OWN, _ALL = _SCENES | _RECONSTRUCTION | _PIE, _MANY | _PIE
_LONG, _CAPTIONER, _MASK, _TOKENS, _MAPPER = Needs.LONG, Needs.CAPTIONER, Needs.MASK, Needs.TOKENS, Needs.MAPPER

ON_FEW_STEPS = (
    Known("turboedit_frozen", "TurboEdit, attention frozen", _ours(frozen=1), _PIE, fewer=True),
    Known("turboedit_short", "TurboEdit, short prompts", _ours(), _PIE),
    Known("turboedit", "TurboEdit", _ours(), _OWN, needs=_LONG, colour="#0b5fa5", fewer=True),
    Known("turboedit_mask", "TurboEdit, auto mask", _ours("auto"), _SCENES | _PIE, needs=_LONG, colour="#13a3a3"),
    Known("turboedit_given", "TurboEdit, given mask", _ours(), _PIE, needs=_LONG | _MASK),
    Known("turboedit_instructive", "TurboEdit, instructions", _ours(), _PIE, needs=_CAPTIONER),
    Known("turboedit_instructive_mask", "TurboEdit, instructions, auto mask", _ours("auto"), _PIE, needs=_CAPTIONER),
    Known(
        "turboedit_instructive_given", "TurboEdit, instructions, given mask", _ours(), _PIE, needs=_CAPTIONER | _MASK
    ),
    Known("ddim", "DDIM inversion", lambda on, _: DdimInversion(on.generator), _OWN, colour="#e07b1f"),
    Known(
        "ddpm", "DDPM inversion", lambda on, _: Ddpm(on.generator), _SCENES | _PIE, _RECONSTRUCTION, colour="#9a5bc2"
    ),
    Known("ddpm_residual", "DDPM + residual", lambda on, _: Ddpm(on.generator, residual=True), _OWN, colour="#d6478f"),
    Known("renoise", "ReNoise", lambda on, _: Renoise(on.generator), _PIE),
    Known("turboedit_deutch", "TurboEdit (Deutch et al.)", lambda on, _: ShiftedDdpm(on.backbone), _PIE),
    Known("infedit", "InfEdit", lambda on, _: InfEdit(on.backbone), _PIE),
    Known("sdedit", "SDEdit", lambda on, _: Sdedit(on.generator), _SCENES | _PIE, colour="#7d8a3c"),
    Known("identity", "identity (VAE)", lambda on, _: Identity(on.backbone), _SCENES, reference=True),
    Known("truth", "true edit (VAE)", lambda on, _: Truth(on.backbone), _SCENES, reference=True),
    Known("ceiling", "ceiling (fresh noise)", lambda on, _: Ceiling(on.generator), _SCENES, reference=True),
)
"""The editors on an exported encoder's generator."""

ON_MANY_STEPS = (
    Known("stylediffusion", "StyleDiffusion", _style(), _ALL, needs=_TOKENS),
    Known("stylediffusion_amortised", "StyleDiffusion, amortised", _style(None, mapped=True), _ALL, needs=_MAPPER),
    Known(
        "stylediffusion_refined",
        "StyleDiffusion, amortised and refined",
        _style(_SHORT_FIT, mapped=True),
        _ALL,
        needs=_MAPPER,
    ),
    Known("stylediffusion_sdedit", "SDEdit, StyleDiffusion", _sdedit("stylediffusion", _style()), _ALL, needs=_TOKENS),
    Known("stylediffusion_no_p2plus", "StyleDiffusion without P2Plus", _style(p2plus=False), asked=_ALL, needs=_TOKENS),
    Known("stylediffusion_keys", "StyleDiffusion, keys only", _style(into="keys"), asked=_ALL, needs=_TOKENS),
    Known("stylediffusion_both", "StyleDiffusion, keys and values", _style(into="both"), asked=_ALL, needs=_TOKENS),
    Known(
        "stylediffusion_direct", "StyleDiffusion without a network", _style(_WITHOUT_NETWORK), asked=_ALL, needs=_TOKENS
    ),
    Known(
        "stylediffusion_no_attention",
        "StyleDiffusion without L_attn",
        _style(attention_weight=0.0),
        asked=_ALL,
        needs=_TOKENS,
    ),
    Known("stylediffusion_paper_form", "StyleDiffusion, paper's form", _style(_REPLACING), asked=_ALL, needs=_TOKENS),
    Known(
        "stylediffusion_short",
        "StyleDiffusion, a tenth of the iterations",
        _style(_SHORT_FIT),
        asked=_ALL,
        needs=_TOKENS,
    ),
    Known("ddim", "DDIM inversion", _guided(GuidedDdim), _ALL),
    Known("ddim_p2p", "DDIM inversion, P2P", _p2p, _ALL),
    Known("null_text", "null-text inversion", _null_text, _ALL),
    Known("npi", "negative-prompt inversion", _guided(NegativePrompt), _ALL),
    Known("prox_npi", "proximal NPI", _proximal, _ALL),
    Known("direct", "direct inversion", _guided(DirectInversion), _ALL),
    Known("masactrl", "MasaCtrl", _guided(MasaCtrl), _PIE, _MANY),
    Known("direct_masactrl", "MasaCtrl, direct inversion", _guided(MasaCtrl, held=True), _PIE, _MANY),
    Known("plug_and_play", "Plug-and-Play", _plug_and_play(), _PIE, _MANY),
    Known("direct_plug_and_play", "Plug-and-Play, direct inversion", _plug_and_play(held=True), _PIE, _MANY),
    Known("pix2pix_zero", "pix2pix-zero", _pix2pix_zero(), _PIE, _MANY),
    Known("direct_pix2pix_zero", "pix2pix-zero, direct inversion", _pix2pix_zero(held=True), _PIE, _MANY),
    Known("ddpm", "DDPM inversion", _ddpm, _ALL),
    Known("sdedit", "SDEdit", _guided(GuidedSdedit), _ALL),
    Known("null_text_sdedit", "SDEdit, null-text", _sdedit("null_text", _null_text), _ALL),
    Known("leditspp", "LEDITS++", lambda on, _: LeditsPP(on.backbone, len(on.ddim)), _PIE, _MANY, partial=True),
    Known("imagic", "Imagic", lambda on, _: Imagic(on.backbone, on.ddim, on.guidance, on.imagic), _ALL, partial=True),
    Known("blended", "blended latents, true mask", _blended, _ALL, needs=_MASK),
    Known("inpaint", "inpainting, true mask", _inpaint, _ALL, needs=_MASK, partial=True),
    Known("identity", "identity (VAE)", lambda on, _: Identity(on.backbone), _MANY, reference=True),
    Known("truth", "true edit (VAE)", lambda on, _: Truth(on.backbone), _MANY, reference=True),
    Known("ceiling", "ceiling (fresh noise)", _guided(GuidedCeiling), _MANY, reference=True),
)
"""The editors on a model that samples in many guided steps."""

ELSEWHERE = (
    Known("turboedit_mean", "TurboEdit, mean alone"),
    Known("turboedit_written", "TurboEdit, written captions", colour="#5b8def"),
    Known("turboedit_written_mean", "TurboEdit, written captions, mean alone"),
    Known("null_text_global", "null-text, global"),
    Known("null_text_random_pivot", "null-text, random pivot"),
    Known("null_text_random_caption", "null-text, random caption"),
    Known("null_text_without_pivot", "null-text, no pivot"),
    Known("textual_inversion", "textual inversion"),
    Known("instruct_pix2pix", "InstructPix2Pix"),
    Known("imagic_lora", "Imagic, LoRA"),
    Known("noise", "random noise"),
    Known("vae", "VAE round trip"),
)
"""Editors that commands make with settings of their own, for their titles and colours."""

KNOWN = (*ON_FEW_STEPS, *ON_MANY_STEPS, *ELSEWHERE)
REFERENCES = tuple(known.name for known in ON_FEW_STEPS if known.reference)
COLOURS = {known.name: known.colour for known in KNOWN if known.colour}


@dataclass(frozen=True)
class Available:
    """The editors that can run, in the order of tables, and by name the reasons why others cannot.

    Args:
        editors: lines of the catalogue, each with the editor that was built from it.
        default: the names of those that a command compares unless told otherwise.
    """

    editors: tuple[tuple[Known, Editor], ...]
    left_out: dict[str, str]
    default: tuple[str, ...]

    def choose(self, names: Sequence[str] | None = None, others: Sequence[str] = ()) -> list[Editor]:
        """The methods of the given names, or without names the default ones, and then the references.

        Raises:
            ValueError: a name, `others` among them, that no method has, or one of a method that cannot run.
        """
        methods = {known.name: editor for known, editor in self.editors if not known.reference}
        for name in (*(names or ()), *others):
            if name in self.left_out:
                raise ValueError(f"the editor {name} cannot run: {self.left_out[name]}")
        if unknown := sorted({*(names or ()), *others} - set(methods)):
            raise ValueError(f"editors {', '.join(unknown)} are unknown; expected some of {', '.join(methods)}")
        chosen = [methods[name] for name in (self.default if names is None else names)]
        return [*chosen, *(editor for known, editor in self.editors if known.reference)]


def available(command: Command, on: FewStepModel | ManyStepModel) -> Available:
    """All editors that a command can compare on a model."""
    found: list[tuple[Known, Editor]] = []
    left_out = {}
    for known in ON_FEW_STEPS if isinstance(on, FewStepModel) else ON_MANY_STEPS:
        if not command & (known.default | known.asked) or known.needs & ~on.meets:
            continue
        assert known.build is not None
        try:
            editor = known.build(on, known.name)
        except ValueError as error:
            if not known.partial:
                raise
            left_out[known.name] = str(error)
            continue
        assert editor.name == known.name, f"the line {known.name} makes an editor that is called {editor.name}"
        found.append((known, editor))
    default = (known.name for known, _ in found if known.default & command and not known.reference)
    return Available(tuple(found), left_out, tuple(default))
