"""All editors that an evaluation compares, on the generator of one exported encoder."""

from eval.editors.ddim import Ddim
from eval.editors.ddpm import Ddpm
from eval.editors.editor import Editor, ReconstructingEditor
from eval.editors.infedit import InfEdit
from eval.editors.references import Ceiling, Identity, Truth
from eval.editors.renoise import Renoise
from eval.editors.sdedit import Sdedit
from eval.editors.shifted_ddpm import ShiftedDdpm
from eval.editors.turboedit import TurboEdit
from models.generator import FewStepGenerator
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
    return [TurboEdit(pipeline), Ddim(generator), Ddpm(generator), Ddpm(generator, residual=True)]


def all_editors(pipeline: TurboEditPipeline) -> list[Editor]:
    """Ours, the baselines on the same generator, and the references."""
    generator = generator_of(pipeline)
    return [
        TurboEdit(pipeline),
        TurboEdit(pipeline, "auto", MASK_THRESHOLD, name="turboedit_mask"),
        Ddim(generator),
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
        Ddim(generator),
        Ddpm(generator),
        Ddpm(generator, residual=True),
        Renoise(generator),
        ShiftedDdpm(generator.backbone),
        InfEdit(generator.backbone),
        Sdedit(generator),
    ]
