"""All editors that are compared, a line each: names, titles and colours, what each needs, and who compares it.

To compare another editor, write its file and add its line, with a function of builders.py where the line needs more
than the editor's class. The order here is that of tables and figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Flag, auto

from eval.editors.builders import (
    REPLACING,
    SHORT_FIT,
    WITHOUT_NETWORK,
    Build,
    blended,
    ddpm,
    guided,
    inpaint,
    null_text,
    ours,
    own_pixels,
    p2p,
    pix2pix_zero,
    plug_and_play,
    proximal,
    sdedit,
    style,
)
from eval.editors.chordedit import ChordEdit
from eval.editors.ddim import DdimInversion
from eval.editors.ddpm import Ddpm
from eval.editors.editor import Editor
from eval.editors.flow import FlowEdit, RfInversion
from eval.editors.guided_ddim import DirectInversion, GuidedDdim
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.imagic import Imagic
from eval.editors.infedit import InfEdit
from eval.editors.leditspp import LeditsPP
from eval.editors.masactrl import MasaCtrl
from eval.editors.models import FewStepModel, ManyStepModel, Needs
from eval.editors.negative_prompt import NegativePrompt
from eval.editors.references import Ceiling, GuidedCeiling, Identity, Truth
from eval.editors.renoise import Renoise
from eval.editors.sdedit import Sdedit
from eval.editors.shifted_ddpm import ShiftedDdpm
from eval.editors.stylediffusion import WordwiseStyleDiffusion


class Command(Flag):
    """The commands that compare editors."""

    NONE = 0
    SCENES = auto()
    RECONSTRUCTION = auto()
    MANY_STEP = auto()
    PIE = auto()


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


_SCENES, _RECONSTRUCTION, _MANY, _PIE = Command.SCENES, Command.RECONSTRUCTION, Command.MANY_STEP, Command.PIE
_OWN, _ALL = _SCENES | _RECONSTRUCTION | _PIE, _MANY | _PIE
_LONG, _CAPTIONER, _MASK, _TOKENS, _MAPPER = Needs.LONG, Needs.CAPTIONER, Needs.MASK, Needs.TOKENS, Needs.MAPPER

ON_FEW_STEPS = (
    Known(
        "turboedit_frozen",
        "TurboEdit, attention frozen",
        ours(frozen=1, outside="reconstruction"),
        _PIE,
        fewer=True,
        partial=True,
    ),
    Known(
        "turboedit_frozen_mask",
        "TurboEdit, attention frozen, auto mask",
        ours("auto", frozen=1, outside="reconstruction"),
        _PIE,
        partial=True,
    ),
    Known(
        "turboedit_frozen_given",
        "TurboEdit, attention frozen, given mask",
        ours(frozen=1, outside="reconstruction"),
        _PIE,
        needs=_MASK,
        partial=True,
    ),
    Known(
        "turboedit_frozen_given_latent",
        "TurboEdit, attention frozen, given mask, own latent outside",
        ours(frozen=1),
        _PIE,
        needs=_MASK,
        partial=True,
    ),
    Known(
        "turboedit_frozen_given_pixels",
        "TurboEdit, attention frozen, given mask, own pixels outside",
        own_pixels(frozen=1),
        _PIE,
        needs=_MASK,
        partial=True,
    ),
    Known("turboedit_short", "TurboEdit, short prompts", ours(outside="reconstruction"), _PIE),
    Known("turboedit", "TurboEdit", ours(), _OWN, needs=_LONG, colour="#0b5fa5", fewer=True),
    Known(
        "turboedit_paper",
        "TurboEdit, paper's form",
        ours(outside="reconstruction"),
        _SCENES | _PIE,
        needs=_LONG,
        colour="#7ba7d4",
    ),
    Known("turboedit_mask", "TurboEdit, auto mask", ours("auto"), _SCENES | _PIE, needs=_LONG, colour="#13a3a3"),
    Known(
        "turboedit_mask_paper",
        "auto mask, paper's form",
        ours("auto", outside="reconstruction"),
        _SCENES,
        _PIE,
        needs=_LONG,
        colour="#8fcfca",
    ),
    Known(
        "turboedit_mask_attention",
        "TurboEdit, mask from attention",
        ours("attention"),
        asked=_SCENES | _PIE,
        needs=_LONG,
        partial=True,
    ),
    Known("turboedit_given", "TurboEdit, given mask", ours(), _PIE, _SCENES, needs=_LONG | _MASK),
    Known(
        "turboedit_given_paper",
        "TurboEdit, given mask, paper's form",
        ours(outside="reconstruction"),
        _PIE,
        _SCENES,
        needs=_LONG | _MASK,
    ),
    Known(
        "turboedit_aligned",
        "TurboEdit, aligned words",
        ours(align=True),
        asked=_SCENES,
        needs=_LONG,
    ),
    Known("turboedit_instructive", "TurboEdit, instructions", ours(), _PIE, needs=_CAPTIONER),
    Known("turboedit_instructive_mask", "TurboEdit, instructions, auto mask", ours("auto"), _PIE, needs=_CAPTIONER),
    Known("turboedit_instructive_given", "TurboEdit, instructions, given mask", ours(), _PIE, needs=_CAPTIONER | _MASK),
    Known("ddim", "DDIM inversion", lambda on, _: DdimInversion(on.generator), _OWN, colour="#e07b1f", fewer=True),
    Known(
        "ddpm",
        "DDPM inversion",
        lambda on, _: Ddpm(on.generator),
        _SCENES | _PIE,
        _RECONSTRUCTION,
        colour="#9a5bc2",
        fewer=True,
    ),
    Known(
        "ddpm_residual",
        "DDPM + residual",
        lambda on, _: Ddpm(on.generator, residual=True),
        _OWN,
        colour="#d6478f",
        fewer=True,
    ),
    Known("renoise", "ReNoise", lambda on, _: Renoise(on.generator), _PIE, partial=True),
    Known("turboedit_deutch", "TurboEdit (Deutch et al.)", lambda on, _: ShiftedDdpm(on.backbone), _PIE, partial=True),
    Known("infedit", "InfEdit", lambda on, _: InfEdit(on.backbone), _PIE, partial=True),
    Known("chordedit", "ChordEdit", lambda on, _: ChordEdit(on.backbone), _PIE, _SCENES, partial=True),
    Known(
        "chordedit_transport",
        "ChordEdit without refinement",
        lambda on, _: ChordEdit(on.backbone, refine=False),
        _PIE,
        _SCENES,
        partial=True,
    ),
    Known("sdedit", "SDEdit", lambda on, _: Sdedit(on.generator), _SCENES | _PIE, colour="#7d8a3c"),
    Known("flowedit", "FlowEdit", lambda on, _: FlowEdit(on.generator), _SCENES | _PIE, colour="#b8402f", partial=True),
    Known(
        "rf_inversion",
        "RF-Inversion",
        lambda on, _: RfInversion(on.generator),
        _SCENES | _PIE,
        colour="#2a9d5c",
        partial=True,
    ),
    Known("identity", "identity (VAE)", lambda on, _: Identity(on.backbone), _SCENES, reference=True),
    Known("truth", "true edit (VAE)", lambda on, _: Truth(on.backbone), _SCENES, reference=True),
    Known("ceiling", "ceiling (fresh noise)", lambda on, _: Ceiling(on.generator), _SCENES, reference=True),
)
"""The editors on an exported encoder's generator."""

ON_MANY_STEPS = (
    Known("stylediffusion", "StyleDiffusion", style(), _MANY, _PIE, needs=_TOKENS),
    Known("stylediffusion_amortised", "StyleDiffusion, amortised", style(None, mapped=True), _ALL, needs=_MAPPER),
    Known(
        "stylediffusion_refined",
        "StyleDiffusion, amortised and refined",
        style(SHORT_FIT, mapped=True),
        _ALL,
        needs=_MAPPER,
    ),
    Known(
        "stylediffusion_sdedit",
        "SDEdit, StyleDiffusion",
        sdedit("stylediffusion", style()),
        _MANY,
        _PIE,
        needs=_TOKENS,
    ),
    Known("stylediffusion_no_p2plus", "StyleDiffusion without P2Plus", style(p2plus=False), asked=_ALL, needs=_TOKENS),
    Known(
        "stylediffusion_words",
        "StyleDiffusion, values by words",
        style(kind=WordwiseStyleDiffusion),
        asked=_ALL,
        needs=_TOKENS,
    ),
    Known("stylediffusion_keys", "StyleDiffusion, keys only", style(into="keys"), asked=_ALL, needs=_TOKENS),
    Known("stylediffusion_both", "StyleDiffusion, keys and values", style(into="both"), asked=_ALL, needs=_TOKENS),
    Known(
        "stylediffusion_direct", "StyleDiffusion without a network", style(WITHOUT_NETWORK), asked=_ALL, needs=_TOKENS
    ),
    Known(
        "stylediffusion_no_attention",
        "StyleDiffusion without L_attn",
        style(attention_weight=0.0),
        asked=_ALL,
        needs=_TOKENS,
    ),
    Known("stylediffusion_paper_form", "StyleDiffusion, paper's form", style(REPLACING), asked=_ALL, needs=_TOKENS),
    Known(
        "stylediffusion_short",
        "StyleDiffusion, a tenth of the iterations",
        style(SHORT_FIT),
        asked=_ALL,
        needs=_TOKENS,
    ),
    Known("ddim", "DDIM inversion", guided(GuidedDdim), _ALL),
    Known("ddim_p2p", "DDIM inversion, P2P", p2p, _ALL),
    Known("null_text", "null-text inversion", null_text, _ALL),
    Known("npi", "negative-prompt inversion", guided(NegativePrompt), _ALL),
    Known("prox_npi", "proximal NPI", proximal, _ALL),
    Known("direct", "direct inversion", guided(DirectInversion), _ALL),
    Known("masactrl", "MasaCtrl", guided(MasaCtrl), _PIE, _MANY),
    Known("direct_masactrl", "MasaCtrl, direct inversion", guided(MasaCtrl, held=True), _PIE, _MANY),
    Known("plug_and_play", "Plug-and-Play", plug_and_play(), _PIE, _MANY),
    Known("direct_plug_and_play", "Plug-and-Play, direct inversion", plug_and_play(held=True), _PIE, _MANY),
    Known("pix2pix_zero", "pix2pix-zero", pix2pix_zero(), _PIE, _MANY),
    Known("direct_pix2pix_zero", "pix2pix-zero, direct inversion", pix2pix_zero(held=True), _PIE, _MANY),
    Known("ddpm", "DDPM inversion", ddpm, _ALL),
    Known("sdedit", "SDEdit", guided(GuidedSdedit), _ALL),
    Known("null_text_sdedit", "SDEdit, null-text", sdedit("null_text", null_text), _ALL),
    Known("leditspp", "LEDITS++", lambda on, _: LeditsPP(on.backbone, len(on.ddim)), _PIE, _MANY, partial=True),
    Known(
        "imagic",
        "Imagic",
        lambda on, _: Imagic(on.backbone, on.ddim, on.guidance, on.imagic),
        _MANY,
        _PIE,
        partial=True,
    ),
    Known("blended", "blended latents, true mask", blended, _ALL, needs=_MASK),
    Known("inpaint", "inpainting, true mask", inpaint, _ALL, needs=_MASK, partial=True),
    Known("identity", "identity (VAE)", lambda on, _: Identity(on.backbone), _MANY, reference=True),
    Known("truth", "true edit (VAE)", lambda on, _: Truth(on.backbone), _MANY, reference=True),
    Known("ceiling", "ceiling (fresh noise)", guided(GuidedCeiling), _MANY, reference=True),
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
    Known("swiftedit", "SwiftEdit, released weights"),
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
