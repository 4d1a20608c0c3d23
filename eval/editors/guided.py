"""Shared parts of the many-step editors: an inversion ends in a `Trajectory`, an edit is Prompt-to-Prompt on it."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from eval.editors.blend_words import usable_words
from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from models.attention_edits import Alignment
from models.backbone import Backbone
from models.ddim import Ddim, matching
from models.local_blend import BlendWords, LocalBlend
from models.prompt_to_prompt import NOTHING, Sharing, Trajectory, edit, reconstruct
from models.text import Prompt
from models.word_alignment import refine_alignment, replace_alignment, reweight

logger = logging.getLogger(__name__)

REWEIGHTING = 2.0
"""Factor of the target's blended words, as in PIE-Bench's runner."""


@dataclass(frozen=True)
class EncodedSource:
    """B images as an inversion sees them.

    Args:
        images: [B, 3, H, W] in [-1, 1].
        latent: [B, 4, h, w].
        prompt: the descriptions [B]; null: the empty prompt [B].
    """

    images: Tensor
    latent: Tensor
    prompt: Prompt
    null: Prompt


def usual_sharing(cross: float = 0.4, self_: float = 0.6) -> Sharing:
    """PIE-Bench's shares for all its Prompt-to-Prompt rows, self-attention maps up to a half of the latent's side."""
    return Sharing(cross, self_, unconditional=0.0)


def blend_size(backbone: Backbone, latent: Tensor) -> tuple[int, int]:
    """Size of the maps of a local blend of latents [..., h, w]: a quarter of theirs, 16 x 16 for Stable Diffusion.

    A UNet whose own latents would have maps of less than 8 x 8 has a local blend at the resolution of those.
    """
    return backbone.map_size(max(8, backbone.unet.config.sample_size // 4), latent)


class GuidedEditor(ABC):
    """Inverts into a trajectory; edits by sampling source and target side by side with guidance.

    Strength is the share of the steps that sample without the source's attention maps in their conditional passes: 1
    shares none, 0 all. What `sharing` says of unconditional passes and mapped values holds at every strength.

    Words of a request are those of PIE-Bench's runner: the edit is blended locally by their maps at every strength, and
    the maps of the target's are doubled while cross attention is shared. Words that are not in their prompt are left
    out with a warning. What a request's `control` says counts in their place, for every editor; a word of it that is
    not in its prompt is a ValueError.

    Args:
        backbone: the text-to-image model.
        ddim: the steps.
        guidance: w of classifier-free guidance.
        sharing: shares that the target takes from the source by default; `usual_sharing` if None.

    Attributes:
        takes_words: a request's words count, wherever anything is shared at all.
    """

    name: str
    strengths: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    takes_words = True
    strength_is_share = True

    def __init__(self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5, sharing: Sharing | None = None) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.sharing = sharing or usual_sharing()
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.ddim.timesteps, "guidance": self.guidance, "sharing": asdict(self.sharing)}

    @property
    def inversion_settings(self) -> Settings:
        """All that decides a trajectory: what is shared counts at the edit alone."""
        own = {name: value for name, value in self.settings.items() if name != "sharing"}
        return {"class": type(self).__name__, "model": id(self.backbone), **own}

    @abstractmethod
    def trajectory(self, source: EncodedSource) -> Trajectory:
        """The method's own part: what keeps guided sampling on the images."""

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The trajectory of the images."""
        trajectory = self.trajectory(self.source(images, prompts))
        return InvertedImages(tuple(prompts), {self.ddim.timesteps[0]: trajectory.start}, trajectory)

    def source(self, images: Tensor, prompts: Sequence[str]) -> EncodedSource:
        """The images and prompts encoded."""
        latent = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(latent))
        null = matching(self.backbone.encode_text([""]), prompt)
        return EncodedSource(images, latent, prompt, null)

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The target's branch, decoded."""
        sharing, text, control = self.sharing, self.backbone.text, request.control
        assert text is not None
        words = self._words(inversion, request) if control is None else [control.blend] * len(request.prompt)
        if request.strength is not None:
            first_level(self.ddim, request.strength)  # refuses what is no share
            sharing = replace(sharing, cross=1 - request.strength, self_=1 - request.strength)
        alignment = local = None
        if sharing.cross:
            align = replace_alignment if control is not None and control.swap else refine_alignment
            doubled = [dict.fromkeys(named.target, REWEIGHTING) for named in words]
            factors = doubled if control is None else control.weights
            alignment = reweight(align(text, inversion.prompts, request.prompt), text, request.prompt, factors)
        if any(named != BlendWords() for named in words):
            size = blend_size(self.backbone, inversion.state.start)
            local = LocalBlend(text, inversion.prompts, request.prompt, words, len(self.ddim), size)
        target = self.backbone.encode_text(request.prompt, self.backbone.size_of(inversion.state.start))
        return decode_latents(self.backbone, self.sample(inversion.state, target, sharing, alignment, local))

    def sample(
        self,
        trajectory: Trajectory,
        target: Prompt,
        sharing: Sharing,
        alignment: Alignment | None,
        local: LocalBlend | None,
    ) -> Tensor:
        """The edited latents [B, 4, h, w]; where nothing is shared or blended the target's branch alone."""
        if (
            trajectory.values is None
            and local is None
            and not (sharing.cross or sharing.self_ or sharing.unconditional)
        ):
            alone = replace(trajectory, prompt=target, pivots=None)
            return reconstruct(self.backbone, self.ddim, alone, self.guidance)[-1]
        rules = () if local is None else local.rules
        return edit(self.backbone, self.ddim, trajectory, target, self.guidance, sharing, alignment, local, rules)

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The latent at the end of the source's branch; the noisier ones on the way are no estimates of it."""
        return (reconstruct(self.backbone, self.ddim, inversion.state, self.guidance)[-1],)

    def _words(self, inversion: InvertedImages, request: EditRequest) -> list[BlendWords]:
        """The request's words that can be used; none where the method takes none."""
        if request.words is None or not self.takes_words or self.sharing == NOTHING:
            return [BlendWords()] * len(request.prompt)
        assert self.backbone.text is not None
        words, reasons = usable_words(self.backbone.text, inversion.prompts, request.prompt, request.words)
        for reason in reasons:
            logger.warning("%s edits without it: %s", self.name, reason)
        return words


def first_level(ddim: Ddim, strength: float) -> int:
    """The level at which sampling begins if `strength` is the share of the steps that are sampled.

    Raises ValueError if it is no share.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; expected a share of the {len(ddim)} steps from 0 to 1")
    return len(ddim) - round(strength * len(ddim))


def noised(ddim: Ddim, latent: Tensor, noise: Tensor, level: int) -> Tensor:
    """A latent [B, C, h, w] with `noise` at a level: sqrt(abar) latent + sqrt(1 - abar) noise; itself at the last."""
    if level == len(ddim):
        return latent
    a = ddim.abar(level)
    return a**0.5 * latent + (1 - a) ** 0.5 * noise
