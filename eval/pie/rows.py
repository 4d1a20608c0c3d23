"""The rows of a PIE-Bench evaluation: every editor in the settings in which it is compared.

TurboEdit's published figures come from the benchmark's short prompts with attention frozen in the first step; its own
setting are detailed prompts and no freezing. All other methods get the short prompts, or the instruction.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from eval.editors.catalogue import ON_FEW_STEPS, ON_MANY_STEPS, Command, Known, available
from eval.editors.editor import Editor, settings_of
from eval.editors.guided import GuidedEditor
from eval.editors.infedit import InfEdit
from eval.editors.instruct_pix2pix import InstructPix2Pix
from eval.editors.instruction import InstructionEditor, follows_instructions
from eval.editors.leditspp import LeditsPP
from eval.editors.models import FewStepModel, ManyStepModel, Needs
from eval.editors.negative_prompt import Proximal
from eval.editors.references import Identity, NoisePicture, TruePicture, UnchangedPicture
from eval.editors.stylediffusion import StyleDiffusion
from eval.editors.swiftedit import SwiftEdit, SwiftNetworks
from eval.editors.titles import few_step_name
from eval.editors.turboedit import TurboEdit
from eval.harness.exports import load_mapper
from eval.harness.fingerprints import backbone_settings
from eval.harness.options import Dtype
from eval.harness.precision import guided_dtype
from eval.pie.cases import PieCase
from eval.pie.config import InstructModel, MaskMode, Prompts, SwiftEditConfig, TeacherConfig
from eval.pie.edits import PieRow
from models.backbone import Backbone, dtype_of
from models.clip import ImageTokens
from models.ddim import Ddim
from models.options import MASK_THRESHOLD
from models.prompt_to_prompt import NOTHING, Sharing
from models.turboedit_pipeline import TurboEditPipeline

PIE_PROXIMAL = Proximal("l1", quantile=0.75, inversion_guidance=False)
"""ProxNPI as PIE-Bench's runner has it, by its code and not by what it asks for (cure-lab/PnPInversion, f480116:
models/p2p_editor.py, models/p2p/proximal_guidance_forward.py): its "l0" subtracts, and no guidance arrives."""

PIE_DDPM_SHARE = 0.76
"""Share of the steps that edit-friendly DDPM inversion samples there: it skips 12 of 50."""

INSTRUCT_STEPS = 50
"""Number of InstructPix2Pix's steps, as in PIE-Bench's runner."""


_REFERENCES = ("identity", "truth", "noise", "vae")


@dataclass
class PieRows:
    """The rows that can run, in the order of the tables, and by name the reasons why others cannot."""

    found: list[PieRow] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def chosen(self, names: Sequence[str] | None) -> "PieRows":
        """Choose the rows of the given names and the references; without names those that are compared by default.

        Raises:
            ValueError: a name that no row has, or of one that cannot run.
        """
        methods = {row.name: row for row in self.found if not row.reference}
        for name in names or ():
            if name in self.left_out:
                raise ValueError(f"the editor {name} cannot run: {self.left_out[name]}")
            if name not in methods:
                raise ValueError(f"the editor {name} is unknown; expected some of {', '.join(methods)}")
        wanted = [name for name, row in methods.items() if row.default] if names is None else names
        rows = [methods[name] for name in wanted] + [row for row in self.found if row.reference]
        settled = [replace(row, settings=_settings(row.editor)) for row in rows if row.editor]
        return PieRows(settled, self.left_out if names is None else {})


def refuse_built_in(names: Iterable[str]) -> None:
    """Raises ValueError for names, of a user's own rows, that rows of this evaluation have."""
    editors = [row for row in (*ON_FEW_STEPS, *ON_MANY_STEPS) if Command.PIE & (row.default | row.asked)]
    known = {name for row in editors for name in (row.name, few_step_name(row.name))} | set(_REFERENCES)
    if taken := [name for name in names if name in known or re.sub(r"_\d+$", "", name) in known]:
        raise ValueError(f"{', '.join(taken)} is the name of a built-in row; give your own another name")


def _settings(editor: Editor) -> dict[str, Any]:
    """Everything that decides an editor's pictures."""
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
    instruct: Mapping[str, InstructModel],
    cases: Sequence[PieCase],
    captioner: str | None,
    device: torch.device,
    dtype: Dtype,
    mask_threshold: float = MASK_THRESHOLD,
    swiftedit: SwiftEditConfig | None = None,
) -> PieRows:
    """Everything that these models and cases allow.

    Args:
        pipeline: pipeline of an exported encoder, or None.
        teacher: the model of `config`, or None.
        instruct: models that follow orders by the name of their row.
        captioner: model that writes the prompts of instructive rows, or None.
        device, dtype: device and type of what is loaded here.
        mask_threshold: threshold of TurboEdit's automatic masks.
        swiftedit: SwiftEdit's released weights, or None.

    Raises:
        ValueError: `config` and its mapper do not fit together, or an instructive model cannot be loaded.
    """
    rows = PieRows()
    if pipeline is None:
        rows.left_out["turboedit and all few-step methods"] = "no --encoder was given"
    else:
        _add(rows, encoder_rows(pipeline, mask_threshold), cases, captioner)
    if swiftedit is None or swiftedit.path is None:
        rows.left_out["swiftedit"] = "its released weights were not given by --swiftedit.path"
    else:
        precision = guided_dtype(dtype, swiftedit.base, device)
        networks = SwiftNetworks.load(swiftedit.path, swiftedit.base, swiftedit.image_encoder, device, precision)
        rows.found.append(PieRow("swiftedit", SwiftEdit(networks), mask="automatic", steps=1))
    if teacher is None:
        rows.left_out["all multi-step methods"] = "no --teacher.path was given"
    else:
        _add_teacher(rows, teacher, config, device)
    if not instruct:
        rows.left_out["instruct_pix2pix"] = "no model was given by --instruct.NAME"
    for name, model in instruct.items():
        editor = _instructive(name, model, device, dtype)
        rows.found.append(PieRow(name, editor, "instructive", steps=editor.num_steps, needs_prompts=False))
    rows.found.append(PieRow("identity", UnchangedPicture(), reference=True))
    if all(case.truth for case in cases):
        rows.found.append(PieRow("truth", TruePicture(), reference=True))
    rows.found.append(PieRow("noise", NoisePicture(), reference=True))
    return rows


def _instructive(
    name: str, model: InstructModel, device: torch.device, dtype: Dtype
) -> InstructionEditor | InstructPix2Pix:
    """The editor of a model that follows orders, by what its pipeline is."""
    options: dict[str, Any] = {"variant": model.variant, "name": name}
    if follows_instructions(model.path):
        precision = torch.bfloat16 if dtype == "auto" else dtype_of(dtype)  # all of them are larger than SDXL
        return InstructionEditor(model.path, device, dtype=precision, lora=model.lora, steps=model.steps, **options)
    if model.lora is not None:
        raise ValueError(f"--instruct_loras.{name} is for FLUX's and Qwen's pipelines; {model.path} is none")
    precision = guided_dtype(dtype, model.path, device)
    steps = model.steps or INSTRUCT_STEPS
    return InstructPix2Pix(model.path, device, dtype=precision, num_steps=steps, **options)


def encoder_rows(pipeline: TurboEditPipeline, mask_threshold: float = MASK_THRESHOLD) -> PieRows:
    """TurboEdit in the paper's settings and in its own, and the few-step editors of the same generator."""
    steps = len(pipeline.timesteps)
    fewer = [count for count in pipeline.step_counts if count < steps]
    found = available(Command.PIE, FewStepModel(pipeline, steps, mask_threshold))
    rows: list[PieRow] = []
    for known, editor in found.editors:
        rows.append(_row(known, editor, pipeline.backbone, steps, few_step_name(known.name)))
        for count in fewer if known.fewer else ():
            assert known.build is not None
            name = f"{few_step_name(known.name)}_{count}"
            shorter = known.build(FewStepModel(pipeline, count, mask_threshold), name)
            rows.append(_row(known, shorter, pipeline.backbone, count, name))
    rows.append(PieRow("vae", Identity(pipeline.backbone), reference=True))
    left_out = {few_step_name(name): reason for name, reason in found.left_out.items()}
    forms = [known.name for known in ON_FEW_STEPS if known.fewer and known.name in left_out]
    left_out |= {f"{name}_{count}": left_out[name] for name in forms for count in fewer}
    return PieRows(rows, left_out)


def _row(known: Known, editor: Editor, backbone: Backbone, steps: int, name: str) -> PieRow:
    """A row by what its editor needs; `steps` where the editor does not say how many it takes."""
    prompts: Prompts = "short"
    if known.needs & Needs.CAPTIONER:
        prompts = "instructive"
    elif known.needs & Needs.LONG:
        prompts = "long"
    mask: MaskMode = "given" if known.needs & Needs.MASK else mask_mode(editor)
    steps = getattr(editor, "num_steps", None) or steps
    default = bool(known.default & Command.PIE)
    note = taus_words(editor.sharing) if isinstance(editor, StyleDiffusion) else None
    return PieRow(name, editor, prompts, mask, steps, backbone=backbone, default=default, note=note)


def taus_words(sharing: Sharing) -> str:
    """What a row of StyleDiffusion takes from the source; the published run has tau_u 0."""
    shares = f"tau_c {sharing.cross:g}, tau_s {sharing.self_}, tau_v {sharing.values:g}"
    published = "as the published run" if sharing.unconditional == 0 else "the published run has 0 (P2Plus off)"
    return f"{shares}, tau_u {sharing.unconditional:g}: {published}"


def mask_mode(editor: Editor) -> MaskMode:
    """Whether an editor masks its edits itself; those that blend do so by the annotated words, where there are such."""
    blends = isinstance(editor, GuidedEditor) and editor.takes_words and editor.sharing != NOTHING
    masks = isinstance(editor, TurboEdit) and editor.mask is not None
    return "automatic" if blends or masks or isinstance(editor, InfEdit | LeditsPP) else "none"


def _add(rows: PieRows, found: PieRows, cases: Sequence[PieCase], captioner: str | None) -> None:
    """Adds the encoder's rows but those whose prompts nobody has."""
    rows.left_out |= found.left_out
    for row in found.found:
        if row.prompts == "long" and not any(case.long_prompts for case in cases):
            rows.left_out[row.name] = "the benchmark has no long prompts; see turboedit_instructive"
        elif row.prompts == "instructive" and captioner is None:
            rows.left_out[row.name] = "no --captioner was given to describe the pictures and apply the instructions"
        else:
            rows.found.append(row)


def _add_teacher(rows: PieRows, backbone: Backbone, config: TeacherConfig, device: torch.device) -> None:
    """Adds the multi-step editors, in the settings of PIE-Bench's runners where those differ from the papers'."""
    model = ManyStepModel(
        backbone,
        Ddim(backbone.schedule, config.num_steps, config.steps_offset),
        config.guidance,
        config.null_text,
        config.negative,
        config.imagic,
        proximal=PIE_PROXIMAL,
        ddpm_share=PIE_DDPM_SHARE,
        injection=config.taus,
    )
    found = available(Command.PIE, _with_style_parts(model, rows, config, device))
    rows.found += [_row(known, editor, backbone, config.num_steps, known.name) for known, editor in found.editors]
    rows.left_out |= found.left_out


def _with_style_parts(
    model: ManyStepModel, rows: PieRows, config: TeacherConfig, device: torch.device
) -> ManyStepModel:
    """`model` with what StyleDiffusion needs: the network and tokens of an export, or the tokens of a CLIP."""
    if config.mapper is not None:
        exported = load_mapper(config.mapper, device)
        exported.check(config.num_steps, config.guidance, config.steps_offset)
        return replace(model, tokens=exported.tokens, mapper=exported.mapper, into=exported.into)
    rows.left_out["stylediffusion_amortised"] = "no export of train.stylediffusion was given by --teacher.mapper"
    if config.clip is None:
        rows.left_out["stylediffusion"] = "no CLIP was given by --teacher.clip"
        return model
    return replace(model, tokens=ImageTokens.load(config.clip, device))
