"""The model with its inversions that are compared: an encoder's few-step generator, or a guided model of many steps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from eval.editors.editor import settings_of
from eval.editors.models import ManyStepModel
from eval.editors.options import NullTextSchedule
from eval.harness.exports import checked_steps, export_folder, load_encoder, load_mapper, names_pipeline
from eval.harness.fingerprints import backbone_settings
from eval.harness.options import Dtype
from eval.harness.precision import guided_dtype, name_of
from eval.harness.training import training_steps
from eval.reconstructions.batches import InversionLine
from eval.reconstructions.bench import chosen_lines, guided_lines
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.fingerprints import weights_digest

_NUM_STEPS, _GUIDANCE = 50, 7.5
"""What is usual for Stable Diffusion."""


@dataclass(frozen=True)
class FewSteps:
    """Choices for an export of TurboEdit: numbers of steps, editors; None for the usual ones."""

    steps: Sequence[int] | None
    editors: Sequence[str] | None


@dataclass(frozen=True)
class ManySteps:
    """Choices for many-step editors, as eval.reconstruction explains them."""

    backbone: str | None
    editors: Sequence[str] | None
    num_steps: int | None
    guidance: float | None
    null_text: NullTextSchedule
    clip: str | None
    variant: str | None


@dataclass(frozen=True)
class ReconstructionSubject:
    """A model and its inversions.

    Args:
        backbone: The model, whose VAE is the ceiling.
        lines: The inversions.
        every_step: Whether the longest are looked at after each step.
        decided_by: All that decides their figures, as JSON.
        about: Entries of results.json.
    """

    backbone: Backbone
    lines: Sequence[InversionLine]
    every_step: bool
    decided_by: Mapping[str, Any]
    about: Mapping[str, Any]


def load_subject(
    encoder: str | None, few: FewSteps, many: ManySteps, device: torch.device, dtype: Dtype
) -> ReconstructionSubject:
    """Load an export of TurboEdit or of StyleDiffusion, or a pipeline without any.

    Raises:
        ValueError: Options that the export does not take, or an editor that cannot run.
    """
    if encoder is not None and names_pipeline(encoder, "TurboEditPipeline"):
        if many.backbone is not None:
            raise ValueError(
                f"--backbone is {many.backbone}, but {encoder} is an export of TurboEdit, which brings its generator: "
                "compare many-step editors by a command of their own, without --encoder"
            )
        return _few_steps(encoder, few, device, dtype)
    return _many_steps(encoder, many, device, dtype)


def _few_steps(encoder: str, few: FewSteps, device: torch.device, dtype: Dtype) -> ReconstructionSubject:
    pipeline = load_encoder(encoder, device, dtype)
    lines = chosen_lines(pipeline, checked_steps(pipeline, few.steps), few.editors)
    decided = {
        "encoder": weights_digest(pipeline.encoder),
        "generator": backbone_settings(pipeline.backbone),
        "dtype": name_of(pipeline.encoder.dtype),
        "lines": [line.title for line in lines],
    }
    about = {"training": training_steps(export_folder(encoder)), "timesteps": pipeline.timesteps}
    return ReconstructionSubject(pipeline.backbone, lines, True, decided, about)


def _many_steps(encoder: str | None, many: ManySteps, device: torch.device, dtype: Dtype) -> ReconstructionSubject:
    exported = None if encoder is None else load_mapper(encoder, device)
    path = many.backbone or str(export_folder(str(encoder)))
    weights = guided_dtype(dtype, path, device)
    backbone = Backbone.load(path, device=device, dtype=weights, variant=many.variant)
    num_steps, guidance, offset = _NUM_STEPS, _GUIDANCE, 1
    if exported is not None:
        num_steps, guidance, offset = exported.num_steps, exported.guidance, exported.steps_offset
    num_steps = num_steps if many.num_steps is None else many.num_steps
    guidance = guidance if many.guidance is None else many.guidance
    tokens = None if many.clip is None else ImageTokens.load(many.clip, device)
    if exported is not None:
        exported.check(num_steps, guidance, offset)
        tokens = exported.tokens
    model = ManyStepModel(
        backbone,
        Ddim(backbone.schedule, num_steps, offset),
        guidance,
        many.null_text,
        tokens=tokens,
        mapper=None if exported is None else exported.mapper,
        into="values" if exported is None else exported.into,
    )
    lines = guided_lines(model, many.editors)
    decided = {
        "backbone": backbone_settings(backbone),
        "dtype": name_of(backbone.unet.dtype),
        "lines": [[line.title, settings_of(line.editor)] for line in lines],
    }
    about = {
        "training": None if encoder is None else training_steps(export_folder(encoder)),
        "backbone": path,
        "num_steps": num_steps,
        "guidance": guidance,
        "null_text": asdict(many.null_text),
    }
    return ReconstructionSubject(backbone, lines, False, decided, about)
