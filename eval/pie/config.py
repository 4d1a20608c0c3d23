"""What a user chooses of a PIE-Bench evaluation: words on rows and the guided model, values alone."""

from dataclasses import dataclass, field
from typing import Literal

from eval.editors.options import NEGATIVE, ImagicConfig, NullTextSchedule

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
    null_text: NullTextSchedule = field(default_factory=NullTextSchedule)
    imagic: ImagicConfig = field(default_factory=ImagicConfig)
    negative: str = NEGATIVE
