"""Options of data.encode."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EncodeConfig:
    """Options of the stage.

    Args:
        backbone: diffusers folder or hub id whose VAE (and text encoders, and UNet) encode.
        variant: file variant of the backbone's weights, such as fp16.
        prompts: store prompt embeddings too (KEY.prompt.npy, with KEY.pooled.npy and KEY.mask.npy where the model has
            them); SDXL's are ten times as large as latents and spare about one percent of a training step. Of several
            captions they are of the first.
        pivots: store the latents of a DDIM inversion at guidance 1 with the caption too (KEY.pivots.npy), n + 1 times
            as large as the latent.
        pivot_steps: n, the inversion's steps; StyleDiffusion takes 30.
        steps_offset: 1 for Stable Diffusion's timesteps, down to 1; 0 for those of the official codes, down to 0.
        clip: folder or hub id of a CLIP whose image tokens are stored too (KEY.clip.npy).
        keep_images: keep the pictures beside their latents, of a pair both.
        dtype: type in which the text encoders and the UNet compute; the VAE computes in float32.
        batch: pictures that a network takes at once; by default as many as memory has room for (docs/data.md), 32 at
            most.
        device: place where the networks run; "auto" takes each process's own GPU if there is one.
        max_damage: share of unreadable samples over which the stage stops.
        threads: threads that decode pictures in each process.
    """

    backbone: str
    variant: str | None = None
    prompts: bool = False
    pivots: bool = False
    pivot_steps: int = 30
    steps_offset: int = 1
    clip: str | None = None
    keep_images: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: int | None = None
    device: str = "auto"
    max_damage: float = 0.05
    threads: int = 4

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, expected at least 1")
        if self.dtype != "float32" and not (self.prompts or self.pivots):
            raise ValueError(
                f"--dtype is {self.dtype}, but neither prompts nor pivots are made and the VAE computes in float32; "
                "leave it out, or add --prompts true or --pivots true"
            )
        usual = (EncodeConfig.pivot_steps, EncodeConfig.steps_offset)
        if not self.pivots and (self.pivot_steps, self.steps_offset) != usual:
            raise ValueError(
                f"--pivot-steps is {self.pivot_steps} and --steps-offset {self.steps_offset}, but no pivots are made; "
                "add --pivots true"
            )
