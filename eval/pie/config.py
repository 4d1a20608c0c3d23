"""What a user chooses of a PIE-Bench evaluation: words on rows and models beside the encoder, values alone."""

from dataclasses import dataclass, field
from typing import Literal

from eval.editors.options import NEGATIVE, ImagicConfig, NullTextSchedule, StyleTaus

Prompts = Literal["short", "long", "instructive"]
"""Origin of a row's prompts: the benchmark's own, detailed ones, or a captioner's, changed by the instruction."""

MaskMode = Literal["none", "automatic", "given", "unsaid"]
"""Bounds of an edit: none, the attention to the words that differ, the benchmark's mask; or nobody says."""


@dataclass(frozen=True)
class TeacherConfig:
    """The guided model on which the multi-step methods run, with PIE-Bench's settings by default.

    Args:
        path: folder or hub id of a Stable Diffusion pipeline; null leaves its editors out
        variant: file variant of its weights, such as fp16
        num_steps: number of DDIM's steps
        guidance: weight of classifier-free guidance
        steps_offset: 0 as in PIE-Bench's runner (timesteps 980 to 0), 1 as in Stable Diffusion's scheduler (981 to 1)
        mapper: folder or hub id of an export of a train.stylediffusion run, for StyleDiffusion's amortised rows
        clip: folder or hub id of the CLIP whose image tokens StyleDiffusion maps, where no mapper brings its own; null
            leaves StyleDiffusion out
        taus: shares that StyleDiffusion's edits take from the source; the row without P2Plus has u 0, as the published
            run
        null_text: the optimisations of null-text inversion
        imagic: the fits of Imagic
        negative: Plug-and-Play's negative prompt
    """

    path: str | None = None
    variant: str | None = None
    num_steps: int = 50
    guidance: float = 7.5
    steps_offset: int = 0
    mapper: str | None = None
    clip: str | None = "openai/clip-vit-base-patch16"
    taus: StyleTaus = field(default_factory=StyleTaus)
    null_text: NullTextSchedule = field(default_factory=NullTextSchedule)
    imagic: ImagicConfig = field(default_factory=ImagicConfig)
    negative: str = NEGATIVE


@dataclass(frozen=True)
class SwiftEditConfig:
    """SwiftEdit's released weights.

    Args:
        path: folder of the unpacked archive, with inverse_ckpt-120k, sbv2_0.5 and ip_adapter_ckpt-90k; null leaves the
            row out
        base: folder or hub id of SD-Turbo, whose VAE and text encoder it takes
        image_encoder: folder or hub id of IP-Adapter, for its vision encoder
    """

    path: str | None = None
    base: str = "stabilityai/sd-turbo"
    image_encoder: str = "h94/IP-Adapter"


@dataclass(frozen=True)
class InstructModel:
    """A model that follows orders, by the options of its row.

    Args:
        path: folder or hub id of its pipeline.
        variant: file variant of its weights.
        lora: file of a LoRA that is fused into it.
        steps: number of steps in the place of the usual ones.
    """

    path: str
    variant: str | None = None
    lora: str | None = None
    steps: int | None = None
