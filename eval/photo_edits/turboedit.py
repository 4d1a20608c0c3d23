"""TurboEdit on photographs: the exported pipeline, as a user calls it."""

from collections.abc import Sequence

from PIL import Image
from torch import nn

from eval.photo_edits.method import Mask, MethodEdit, StartingPoint
from eval.photo_edits.options import Aim
from eval.photo_edits.remembered import RememberedText
from models.backbone import Backbone
from models.options import Outside
from models.turboedit_inversion import TurboEditInversion
from models.turboedit_pipeline import TurboEditPipeline


class TurboEditPhotos:
    """The `PhotoMethod` of an exported encoder.

    Args:
        pipeline: the exported pipeline.
        outside: what stands in the end where an edit changes nothing; "reconstruction" is the paper's form.
    """

    def __init__(self, pipeline: TurboEditPipeline, outside: Outside = "source") -> None:
        pipeline.set_progress_bar_config(disable=True)
        text = pipeline.backbone.text
        assert text is not None, "a pipeline has text encoders"
        pipeline.backbone.text = RememberedText(text)  # type: ignore[assignment]
        self.pipeline, self.outside = pipeline, outside

    @property
    def backbone(self) -> Backbone:
        """The few-step generator."""
        return self.pipeline.backbone

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The generator's network and the noise encoder's."""
        return self.pipeline.network, self.pipeline.encoder

    def check(self, prompt: str, aims: Sequence[Aim], mask: Mask) -> None:
        """Raises ValueError for one description with two strengths."""
        if len({aim.text for aim in aims}) < len(aims):
            raise ValueError("a target is given twice; expected different descriptions, each with its own strength")

    def invert(self, picture: Image.Image, prompt: str, steps: int | None) -> StartingPoint:
        """Algorithm 1 of the paper: two evaluations a step."""
        return _start(self.pipeline.invert(picture, prompt, steps))

    def sample(self, prompt: str, steps: int | None) -> StartingPoint:
        """Raises ValueError: there is no photograph whose noise could be kept."""
        raise ValueError("TurboEdit edits photographs: give --image")

    def reconstruct(self, start: StartingPoint) -> Image.Image:
        """The generator's last estimate, which the inversion has made already."""
        return self.pipeline.decode(start.state.reconstructions[-1])[0]

    def edit(self, start: StartingPoint, aims: Sequence[Aim], mask: Mask, threshold: float) -> MethodEdit:
        """Algorithm 2 of the paper: one evaluation a step."""
        wishes = {aim.text: 1.0 if aim.strength is None else aim.strength for aim in aims}
        output = self.pipeline.edit(start.state, wishes, mask=mask, threshold=threshold, outside=self.outside)
        return MethodEdit(output.images[0], output.mask, _start(output.inversion))


def _start(inversion: TurboEditInversion) -> StartingPoint:
    assert inversion.cutouts is not None, "an inversion of a picture says what it shows of it"
    return StartingPoint(inversion, inversion.cutouts[0], dict(zip(inversion.timesteps, inversion.noises, strict=True)))
