"""The rows of a PIE-Bench evaluation: every editor in the settings in which it is compared.

TurboEdit's published figures come from the benchmark's short prompts with attention frozen in the first step; its own
setting are detailed prompts and no freezing. All other methods get the short prompts, or the instruction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from eval.editors.catalogue import (
    ABLATIONS,
    REFERENCES,
    few_step_editors,
    many_step_editors,
    mask_threshold,
    masked_editors,
    style_editors,
)
from eval.editors.editor import Editor, settings_of
from eval.editors.guided import GuidedEditor
from eval.editors.guided_ddpm import GuidedDdpm
from eval.editors.imagic import Imagic, ImagicConfig
from eval.editors.infedit import InfEdit
from eval.editors.instruct_pix2pix import InstructPix2Pix
from eval.editors.leditspp import LeditsPP
from eval.editors.negative_prompt import Proximal, ProximalNegativePrompt
from eval.editors.null_text import NullTextSchedule
from eval.editors.plug_and_play import NEGATIVE
from eval.editors.references import Identity, NoisePicture, TruePicture, UnchangedPicture
from eval.editors.turboedit import TurboEdit
from eval.harness.exports import load_mapper
from eval.harness.fingerprints import backbone_settings
from eval.pie.cases import PieCase
from eval.pie.edits import MaskMode, PieRow, Prompts
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.prompt_to_prompt import NOTHING
from models.turboedit_pipeline import TurboEditPipeline

PIE_QUANTILE = 0.75
"""Of ProxNPI in PIE-Bench's runner."""

PIE_DDPM_SHARE = 0.76
"""Of the steps that edit-friendly DDPM inversion samples there: it skips 12 of 50."""

INSTRUCT_STEPS = 50
"""Of InstructPix2Pix, as in PIE-Bench's runner."""


@dataclass(frozen=True)
class TeacherConfig:
    """The guided model on which the multi-step methods run, with PIE-Bench's settings by default.

    Args:
        path: folder or hub id of a Stable Diffusion pipeline; null leaves its editors out
        num_steps: of DDIM
        guidance: weight of classifier-free guidance
        steps_offset: 0 as in PIE-Bench's runner (timesteps 980 to 0), 1 as in Stable Diffusion's scheduler (981 to 1)
        mapper: export of a train.stylediffusion run, for StyleDiffusion's amortised rows
        clip: folder or hub id of the CLIP whose image tokens StyleDiffusion maps, where no mapper brings its own; null
            leaves StyleDiffusion out
        null_text: the optimisations of null-text inversion
        imagic: the fits of Imagic
        negative: Plug-and-Play's negative prompt
    """

    path: str | None = None
    num_steps: int = 50
    guidance: float = 7.5
    steps_offset: int = 0
    mapper: Path | None = None
    clip: str | None = "openai/clip-vit-base-patch16"
    null_text: NullTextSchedule = field(default_factory=NullTextSchedule)
    imagic: ImagicConfig = field(default_factory=ImagicConfig)
    negative: str = NEGATIVE


@dataclass
class Rows:
    """The rows that can run, in the order of the tables, and by name the reasons why others cannot."""

    found: list[PieRow] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def chosen(self, names: Sequence[str] | None) -> "Rows":
        """Those of the given names and the references; without names all but StyleDiffusion's ablations.

        Raises:
            ValueError: a name that no row has, or of one that cannot run.
        """
        methods = {row.name: row for row in self.found if not row.reference}
        for name in names or ():
            if name in self.left_out:
                raise ValueError(f"the editor {name} cannot run: {self.left_out[name]}")
            if name not in methods:
                raise ValueError(f"the editor {name} is unknown; expected some of {', '.join(methods)}")
        wanted = [name for name in methods if name not in ABLATIONS] if names is None else names
        rows = [methods[name] for name in wanted] + [row for row in self.found if row.reference]
        settled = [replace(row, settings=_settings(row.editor)) for row in rows if row.editor]
        return Rows(settled, self.left_out if names is None else {})


def _settings(editor: Editor) -> dict[str, Any]:
    """All that decides an editor's pictures."""
    model = getattr(editor, "backbone", None)
    return {
        "editor": settings_of(editor),
        "model": None if model is None else backbone_settings(model),
        "dtypes": [str(next(network.parameters()).dtype) for network in editor.networks],
    }


def all_rows(
    pipeline: TurboEditPipeline | None,
    teacher: Backbone | None,
    config: TeacherConfig,
    instruct: Mapping[str, str],
    cases: Sequence[PieCase],
    captioner: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Rows:
    """Everything that these models and cases allow.

    Args:
        pipeline: of an exported encoder, or None.
        teacher: the model of `config`, or None.
        instruct: InstructPix2Pix-like models by the name of their row.
        captioner: that writes the prompts of instructive rows, or None.
        device, dtype: of what is loaded here.

    Raises:
        ValueError: `config` and its mapper do not fit together, or an instructive model cannot be loaded.
    """
    rows = Rows()
    if pipeline is None:
        rows.left_out["turboedit and all few-step methods"] = "no --encoder was given"
    else:
        _add(rows, encoder_rows(pipeline), cases, captioner)
    if teacher is None:
        rows.left_out["all multi-step methods"] = "no --teacher.path was given"
    else:
        _add_teacher(rows, teacher, config, device)
    if not instruct:
        rows.left_out["instruct_pix2pix"] = "no model was given by --instruct.NAME"
    for name, path in instruct.items():
        editor = InstructPix2Pix(path, device, dtype=dtype, name=name, num_steps=INSTRUCT_STEPS)
        rows.found.append(PieRow(name, editor, "instructive", steps=editor.num_steps, needs_prompts=False))
    rows.found.append(PieRow("identity", UnchangedPicture(), reference=True))
    if all(case.truth for case in cases):
        rows.found.append(PieRow("truth", TruePicture(), reference=True))
    rows.found.append(PieRow("noise", NoisePicture(), reference=True))
    return rows


def encoder_rows(pipeline: TurboEditPipeline) -> list[PieRow]:
    """TurboEdit in the paper's settings and in its own, and the few-step editors of the same generator."""
    backbone, steps = pipeline.backbone, len(pipeline.timesteps)

    def ours(name: str, prompts: Prompts, mask: MaskMode = "none", num_steps: int = steps, frozen: int = 0) -> PieRow:
        automatic = "auto" if mask == "automatic" else None
        editor = TurboEdit(pipeline, automatic, mask_threshold(pipeline), name, num_steps, frozen)
        return PieRow(name, editor, prompts, mask, num_steps, backbone=backbone)

    fewer = [count for count in pipeline.step_counts if count < steps]
    return [
        ours("turboedit_frozen", "short", frozen=1),
        *(ours(f"turboedit_frozen_{count}", "short", num_steps=count, frozen=1) for count in fewer),
        ours("turboedit_short", "short"),
        ours("turboedit", "long"),
        *(ours(f"turboedit_{count}", "long", num_steps=count) for count in fewer),
        ours("turboedit_mask", "long", "automatic"),
        ours("turboedit_given", "long", "given"),
        ours("turboedit_instructive", "instructive"),
        ours("turboedit_instructive_mask", "instructive", "automatic"),
        ours("turboedit_instructive_given", "instructive", "given"),
        *(
            PieRow(few_step_name(editor), editor, "short", mask_mode(editor), _steps(editor, steps), backbone=backbone)
            for editor in few_step_editors(pipeline)
        ),
        PieRow("vae", Identity(backbone), reference=True),
    ]


def few_step_name(editor: Editor) -> str:
    """The row of a few-step baseline: DDIM, DDPM and SDEdit have many-step forms of the same name."""
    return f"{editor.name}_turbo" if editor.name in ("ddim", "ddpm", "sdedit") else editor.name


def _as_published(editor: Editor) -> Editor:
    """PIE-Bench's runners have another quantile for proximal guidance and other skipped steps than the papers."""
    if isinstance(editor, ProximalNegativePrompt):
        proximal = Proximal(quantile=PIE_QUANTILE)
        return ProximalNegativePrompt(editor.backbone, editor.ddim, editor.guidance, proximal=proximal)
    if isinstance(editor, GuidedDdpm):
        sources = editor.source_guidance
        return GuidedDdpm(editor.backbone, editor.ddim, editor.guidance, sources, default_strength=PIE_DDPM_SHARE)
    return editor


def mask_mode(editor: Editor) -> MaskMode:
    """LEDITS++ masks by attention, and so do methods that blend by the annotated words, where there are such."""
    blends = isinstance(editor, GuidedEditor) and editor.takes_words and editor.sharing != NOTHING
    return "automatic" if blends or isinstance(editor, InfEdit | LeditsPP) else "none"


def _steps(editor: Editor, default: int) -> int:
    return getattr(editor, "num_steps", None) or default


def _add(rows: Rows, found: Sequence[PieRow], cases: Sequence[PieCase], captioner: str | None) -> None:
    """Adds the encoder's rows but those whose prompts nobody has."""
    for row in found:
        if row.prompts == "long" and not any(case.long_prompts for case in cases):
            rows.left_out[row.name] = "the benchmark has no long prompts; see turboedit_instructive"
        elif row.prompts == "instructive" and captioner is None:
            rows.left_out[row.name] = "no --captioner was given to describe the pictures and apply the instructions"
        else:
            rows.found.append(row)


def _add_teacher(rows: Rows, backbone: Backbone, config: TeacherConfig, device: torch.device) -> None:
    """Adds the multi-step editors."""
    steps, guidance = config.num_steps, config.guidance
    ddim = Ddim(backbone.schedule, steps, config.steps_offset)
    found, left_out = many_step_editors(backbone, ddim, guidance, config.null_text, config.negative)
    rows.left_out |= left_out
    editors = _style_editors(rows, backbone, ddim, config, device)
    editors += [_as_published(editor) for editor in found if editor.name not in REFERENCES]
    try:
        editors.append(Imagic(backbone, ddim, guidance, config.imagic))
    except ValueError as error:
        rows.left_out[Imagic.name] = str(error)
    rows.found += [
        PieRow(editor.name, editor, mask=mask_mode(editor), steps=steps, backbone=backbone) for editor in editors
    ]
    masked, left_out = masked_editors(backbone, steps, guidance)
    rows.left_out |= left_out
    rows.found += [PieRow(editor.name, editor, mask="given", steps=steps) for editor in masked]


def _style_editors(
    rows: Rows, backbone: Backbone, ddim: Ddim, config: TeacherConfig, device: torch.device
) -> list[Editor]:
    """StyleDiffusion, with the tokens of the export where there is one."""
    if config.mapper is not None:
        exported = load_mapper(config.mapper, device)
        exported.check(config.num_steps, config.guidance, config.steps_offset)
        return style_editors(backbone, ddim, exported.tokens, config.guidance, exported.mapper, exported.into)
    rows.left_out["stylediffusion_amortised"] = "no export of train.stylediffusion was given by --teacher.mapper"
    if config.clip is None:
        rows.left_out["stylediffusion"] = "no CLIP was given by --teacher.clip"
        return []
    return style_editors(backbone, ddim, ImageTokens.load(config.clip, device), config.guidance)
