"""The networks of PIE-Bench's metrics as a user chooses them: values alone, which need no torch."""

from dataclasses import dataclass
from pathlib import Path

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
    """

    lpips: Path | None = None
    structure: str = PUBLISHED_DINO
    clip: str = PUBLISHED_CLIP
