"""Editors that no method is: the picture as it is, the true edit, random noise. An evaluation is checked against them.

They work on pictures and know no model, so their figures are known before they are measured.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from eval.editors.editor import EditRequest, Inversion
from eval.editors.randomness import image_keys, image_noise


class PictureReference:
    """What the references share: no network, no strength, an inversion that remembers the pictures."""

    name: str
    strengths: ClassVar[tuple[float, ...]] = (1.0,)
    networks: ClassVar[tuple[nn.Module, ...]] = ()

    def invert(self, images: Tensor, prompts: Sequence[str]) -> Inversion:
        """The pictures."""
        return Inversion(tuple(prompts), {}, images)


class UnchangedPicture(PictureReference):
    """The source itself: keeps everything, changes nothing."""

    name = "identity"

    def edit(self, inversion: Inversion, request: EditRequest) -> Tensor:
        """The source."""
        return inversion.state


class TruePicture(PictureReference):
    """The true edit itself."""

    name = "truth"

    def edit(self, inversion: Inversion, request: EditRequest) -> Tensor:
        """Raises ValueError if the request does not hold the true edit."""
        if request.truth is None:
            raise ValueError("the true edit of this picture is not known")
        return request.truth


class NoisePicture(PictureReference):
    """Uniform random pixels: keeps nothing."""

    name = "noise"

    def edit(self, inversion: Inversion, request: EditRequest) -> Tensor:
        """Noise that follows from the picture and the request's seed."""
        normal = image_noise(image_keys(inversion.state), self.name, request.seed, inversion.state)
        return torch.special.ndtr(normal) * 2 - 1
