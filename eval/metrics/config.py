"""The networks of PIE-Bench's metrics as a user chooses them: values alone, which need no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PUBLISHED_CLIP = "openai/clip-vit-large-patch14"
"""The CLIP of PIE-Bench's tables."""

PUBLISHED_DINO = "facebook/dino-vitb8"
"""The DINO of PIE-Bench's tables."""


@dataclass(frozen=True)
class MetricConfig:
    """The places of the networks of PIE-Bench's metrics; those of its tables by default.

    Args:
        lpips: torchvision's weights of SqueezeNet 1.1 (.pth, .safetensors); null for torch hub's copy, downloaded
            unless HF_HUB_OFFLINE is set
        structure: folder or hub id of a ViTModel, or of a CLIPModel instead
        clip: folder or hub id of a CLIPModel
        second_clip: another CLIPModel, whose similarities stand beside the first one's, such as
            openai/clip-vit-base-patch32; null for none
        further: measure whole pictures, the edited part and the direction of CLIP's embeddings too
        libraries: libraries whose arithmetic the published form has: those of the tables, of 2023, or today's, with
            which the official code gives higher SSIM and other structure distances
    """

    lpips: Path | None = None
    structure: str = PUBLISHED_DINO
    clip: str = PUBLISHED_CLIP
    second_clip: str | None = None
    further: bool = False
    libraries: Literal["published", "today"] = "published"
