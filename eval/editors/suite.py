"""All editors that an evaluation compares, on the generator of one exported encoder."""

from eval.editors.ddim import Ddim
from eval.editors.ddpm import Ddpm
from eval.editors.editor import Editor, ReconstructingEditor
from eval.editors.references import Ceiling, Identity, Truth
from eval.editors.sdedit import Sdedit
from eval.editors.turboedit import TurboEdit
from models.generator import FewStepGenerator
from models.turboedit_pipeline import TurboEditPipeline

REFERENCES = ("identity", "truth", "ceiling")


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
        TurboEdit(pipeline, mask="auto"),
        Ddim(generator),
        Ddpm(generator),
        Ddpm(generator, residual=True),
        Sdedit(generator),
        Identity(generator.backbone),
        Truth(generator.backbone),
        Ceiling(generator),
    ]
