"""Options that several methods share."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float16", "bfloat16", "float32"]
"""Dtype of frozen networks, in which they compute whatever run.mixed_precision is (docs/options.md)."""


@dataclass(frozen=True)
class LoraConfig:
    """Adapters in the place of a full fine-tune."""

    rank: int = 0
    """Rank of the adapters; 0 has none and trains all weights."""
    alpha: float | None = None
    """Scale of what an adapter adds, times rank: alpha / rank. Null takes the rank, which scales by one."""
    targets: tuple[str, ...] | None = None
    """Ends of the names of the layers that get one. Null takes the projections of all attention, by the names of the
    model's family, and a run records them; larger ones of a UNet come with ff.net.2, ff.net.0.proj, conv1 and conv2."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if self.rank < 0 or self.targets == () or (self.alpha is not None and self.alpha <= 0):
            raise ValueError(
                f"lora.rank {self.rank} must be at least 0 (0: no adapters), lora.alpha {self.alpha} above 0 or null, "
                f"lora.targets {self.targets} must name a layer or be null"
            )


@dataclass(frozen=True)
class StableDiffusionConfig:
    """The Stable Diffusion that a training starts from or follows."""

    path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """diffusers folder or hub id."""
    variant: str | None = None
    """File variant on the hub, such as fp16."""
    dtype: Dtype = "float16"
    """Dtype of the frozen weights: the text encoder's, and the UNet's unless all of it is trained. The VAE runs in
    float32."""
