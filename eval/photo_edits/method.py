"""What a loaded method does with one photograph, whichever it is: where an edit starts, and where it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

from eval.photo_edits.options import Aim
from models.backbone import Backbone
from models.shapes import Cutout

Mask = str | Image.Image | None
"""An automatic mask by its name, a drawn picture whose white may change, or None."""


@dataclass(frozen=True)
class StartingPoint:
    """A picture in a method's own form, from which edits start.

    Args:
        state: what the method remembers.
        cutout: what it shows of the photograph.
        noises: noise [1, 4, h, w] by the timestep that uses it, of methods that have such.
    """

    state: Any
    cutout: Cutout
    noises: Mapping[float, Tensor]


@dataclass(frozen=True)
class MethodEdit:
    """An edit as the method gives it.

    Args:
        picture: the edited picture.
        weights: where the picture could change, [1, 1, h, w] in [0, 1]; None for everywhere, or where it was drawn.
        start: the edit as a start for further ones; None where the method has no such.
    """

    picture: Image.Image
    weights: Tensor | None
    start: StartingPoint | None


class PhotoMethod(Protocol):
    """A loaded method."""

    @property
    def backbone(self) -> Backbone:
        """The text-to-image model."""
        ...

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks whose evaluations count."""
        ...

    def check(self, prompt: str, aims: Sequence[Aim], mask: Mask) -> None:
        """Refuse an edit that the method does not make, before anything is computed for it.

        Raises:
            ValueError: aims or a mask that the method does not take.
        """
        ...

    def invert(self, picture: Image.Image, prompt: str, steps: int | None) -> StartingPoint:
        """Start from an upright RGB photograph and its description, in `steps` steps, or all that there are.

        Raises:
            ValueError: a number of steps that the method does not have.
        """
        ...

    def sample(self, prompt: str, steps: int | None) -> StartingPoint:
        """Start from noise, in the place of a photograph.

        Raises:
            ValueError: the method edits photographs alone.
        """
        ...

    def reconstruct(self, start: StartingPoint) -> Image.Image | None:
        """The photograph as the method gives it back, in the size that the networks see; None if it gives none."""
        ...

    def edit(self, start: StartingPoint, aims: Sequence[Aim], mask: Mask, threshold: float) -> MethodEdit:
        """Edit towards all aims at once, which `check` has let pass.

        Raises:
            ValueError: a mask of another aspect.
        """
        ...
