"""Options of the toy method."""

from dataclasses import dataclass, field
from typing import Literal

from train.run.config import FitConfig


@dataclass(frozen=True)
class DenoiserConfig:
    """The model whose last convolution is trained."""

    path: str = "none"
    """diffusers folder."""


@dataclass(frozen=True, kw_only=True)
class ToyConfig(FitConfig):
    """A toy training.

    Args:
        denoiser: The model.
        method: Name of the method.
    """

    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    method: Literal["toy"] = "toy"
