"""The models on which editors run, and the needs of editors that they meet."""

from dataclasses import dataclass, field
from enum import Flag, auto

from torch import nn

from eval.editors.negative_prompt import Proximal
from eval.editors.options import NEGATIVE, ImagicConfig, NullTextSchedule, StyleTaus
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.generator import FewStepGenerator
from models.options import MASK_THRESHOLD, Into
from models.turboedit_pipeline import TurboEditPipeline


class Needs(Flag):
    """Needs of an editor beside the model, the picture and two prompts."""

    NOTHING = 0
    LONG = auto()
    """Detailed prompts."""
    CAPTIONER = auto()
    """A captioner, which describes the picture and changes the description by the instruction."""
    MASK = auto()
    """The user's mask."""
    TOKENS = auto()
    """CLIP's tokens of the picture."""
    MAPPER = auto()
    """An amortised mapping network (and its tokens)."""


@dataclass(frozen=True)
class FewStepModel:
    """An exported encoder and its generator.

    Args:
        pipeline: the export.
        num_steps: number of its timesteps that are taken; None for all.
        mask_threshold: threshold of automatic masks.

    Raises:
        ValueError: a threshold that is no share.
    """

    pipeline: TurboEditPipeline
    num_steps: int | None = None
    mask_threshold: float = MASK_THRESHOLD

    def __post_init__(self) -> None:
        if not 0 <= self.mask_threshold <= 1:
            raise ValueError(f"--mask_threshold is {self.mask_threshold:g}, expected a share from 0 to 1")

    @property
    def generator(self) -> FewStepGenerator:
        """The few-step generator on which the encoder was trained, at the timesteps of `num_steps`."""
        return FewStepGenerator(self.pipeline.backbone, self.pipeline.timesteps_of(self.num_steps))

    @property
    def backbone(self) -> Backbone:
        """The generator's networks."""
        return self.pipeline.backbone

    @property
    def meets(self) -> Needs:
        """Everything but StyleDiffusion's parts: prompts and masks come with the pictures."""
        return Needs.LONG | Needs.CAPTIONER | Needs.MASK


@dataclass(frozen=True)
class ManyStepModel:
    """A model that samples in many guided steps, with the settings of the editors on it.

    Args:
        ddim: the steps; 50 with an offset of 0 are those of PIE-Bench's runners of Prompt-to-Prompt and MasaCtrl. Its
            runners of pix2pix-zero and Plug-and-Play have an offset of 1, and so these have always.
        guidance: w; edit-friendly DDPM inversion's own, 15, is not taken; its source has 1, as in PIE-Bench's runner.
            LEDITS++ has a scale of its own.
        null_text: null-text inversion's optimisations. The paper's 10 iterations are meant for 50 steps: fewer steps
            need more.
        negative: Plug-and-Play's negative prompt; the official one means nothing to a backbone of scenes.
        imagic: the fits of Imagic.
        proximal: the proximal step of ProxNPI.
        ddpm_share: the share of the steps that DDPM inversion samples by default.
        tokens: CLIP's tokens of pictures, or None without StyleDiffusion.
        mapper: an amortised mapping network, or None; `into` says where it puts its embeddings.
        injection: shares that StyleDiffusion's edits take from the source, in all forms but the one without P2Plus.
    """

    backbone: Backbone
    ddim: Ddim
    guidance: float = 7.5
    null_text: NullTextSchedule | None = None
    negative: str = NEGATIVE
    imagic: ImagicConfig | None = None
    proximal: Proximal = field(default_factory=Proximal)
    ddpm_share: float = 0.64
    tokens: ImageTokens | None = None
    mapper: nn.Module | None = None
    into: Into = "values"
    injection: StyleTaus = field(default_factory=StyleTaus)

    @property
    def usual(self) -> Ddim:
        """Equally many steps with Stable Diffusion's offset."""
        return Ddim(self.backbone.schedule, len(self.ddim))

    @property
    def meets(self) -> Needs:
        """Masks, and the parts of StyleDiffusion that are there."""
        tokens = Needs.NOTHING if self.tokens is None else Needs.TOKENS
        return Needs.MASK | tokens | (Needs.NOTHING if self.mapper is None else Needs.MAPPER)
