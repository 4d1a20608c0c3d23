"""StyleDiffusion (Li et al. 2023): values of cross attention fitted for each image, given by one network, or both."""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.guided import EncodedSource, GuidedEditor
from eval.harness.fingerprints import network_fingerprint
from models.attention_edits import Alignment
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots
from models.options import FitSchedule, StyleObjective
from models.prompt_to_prompt import Sharing, Trajectory
from models.stylediffusion import GuidedStep, amortised, fit_modulations
from models.word_alignment import refine_alignment


class StyleDiffusion(GuidedEditor):
    """Mapped values keep guided sampling on the image; Prompt-to-Prompt edits (P2Plus with tau_u above 0).

    Args:
        tokens: CLIP's tokens of the images.
        objective: objective of a step; its guidance is that of sampling.
        schedule: schedule of the fit of each image, or None for none.
        mapper: an amortised network from whose values the fit starts, or which is taken at its word; without it the fit
            is the paper's.
        seed: seed of the networks' first weights.

    Raises:
        ValueError: neither a network nor a fit is wanted.
    """

    takes_words = False  # as in PIE-Bench's runner

    def __init__(
        self,
        backbone: Backbone,
        ddim: Ddim,
        tokens: ImageTokens,
        objective: StyleObjective,
        schedule: FitSchedule | None = None,
        mapper: nn.Module | None = None,
        sharing: Sharing | None = None,
        name: str = "stylediffusion",
        seed: int = 0,
    ) -> None:
        if schedule is None and mapper is None:
            raise ValueError(
                "StyleDiffusion needs a fit of each image (schedule), an amortised network (mapper), or both"
            )
        super().__init__(backbone, ddim, objective.guidance, sharing)
        self.tokens = tokens
        self.step = GuidedStep(backbone, ddim, objective)
        self.schedule = schedule
        self.mapper = mapper
        self.name = name
        self.seed = seed

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            **super().settings,
            "tokens": {"model": network_fingerprint(self.tokens.model), "pixels": asdict(self.tokens.pixels)},
            "objective": asdict(self.step.objective),
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "mapper": None if self.mapper is None else network_fingerprint(self.mapper),
            "seed": self.seed,
        }

    def trajectory(self, source: EncodedSource) -> Trajectory:
        """DDIM's noisiest pivot, and values for every step."""
        pivots = ddim_pivots(self.backbone, self.ddim, source.latent, source.prompt)
        tokens = self.tokens(source.images)
        values = None if self.mapper is None else amortised(self.mapper, tokens, self.ddim, source.prompt)
        if self.schedule is not None:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                fitted = fit_modulations(self.step, tokens, pivots, source.prompt, source.null, self.schedule, values)
            values = fitted.modulations
        nulls = (source.null,) * len(self.ddim)
        return Trajectory(pivots[0], source.prompt, nulls, values, self.step.objective.into)


class WordwiseStyleDiffusion(StyleDiffusion):
    """StyleDiffusion whose target takes the values of its words, where the official code goes by position.

    A network's output belongs to positions of the source's prompt. Once a word is added or dropped, all that follow it
    are modulated as others; here a word that both prompts have keeps its own modulation, and new words have that of
    their position.
    """

    @property
    def inversion_settings(self) -> Settings:
        """StyleDiffusion's: the inversions are the same."""
        return {**super().inversion_settings, "class": StyleDiffusion.__name__}

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The target's branch, decoded."""
        text = self.backbone.text
        assert text is not None
        alignment = refine_alignment(text, inversion.prompts, request.prompt)
        values = inversion.state.values
        assert values is not None
        targets = tuple(by_words(to_values, alignment) for to_values in values)
        return super().edit(replace(inversion, state=replace(inversion.state, target_values=targets)), request)


def by_words(to_values: Callable[[Tensor], Tensor], alignment: Alignment) -> Callable[[Tensor], Tensor]:
    """A function of a prompt's embeddings [B, L, D] whose modulation goes by the source's words.

    Args:
        to_values: embeddings times a plus b, each with a and b of its position.
        alignment: alignment of the source's words with the target's.
    """

    def values(embeds: Tensor) -> Tensor:
        shift = to_values(torch.zeros_like(embeds))
        scale = to_values(torch.ones_like(embeds)) - shift
        matrix, share = alignment.matrix.to(embeds), alignment.share.to(embeds)[..., None]
        scale, shift = (share * (matrix.mT @ own) + (1 - share) * own for own in (scale, shift))
        return embeds * scale + shift

    return values
