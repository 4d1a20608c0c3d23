"""Null-text inversion (Mokady et al. 2023, Algorithm 1).

Every timestep gets an empty prompt of its own, optimised so that guided sampling follows the DDIM pivots.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from eval.editors.editor import Settings
from eval.editors.guided import EncodedSource, GuidedEditor
from eval.editors.options import NullTextSchedule
from eval.metrics.pixels import mse
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, predict_noise
from models.prompt_to_prompt import Sharing, Trajectory
from models.text import Prompt

RowsLoss = Callable[[Tensor, list[int], int], Tensor]
"""(embeddings [b, L, D] of the b images that still learn, which of all images these are, iteration) -> loss [b]."""

Losses = tuple[tuple[float, ...], ...]
"""Losses of each image before each of its updates."""


@dataclass(frozen=True)
class NullTextFit:
    """The trajectory of B images, and the losses of each optimisation (one for each timestep, or one for all)."""

    trajectory: Trajectory
    losses: tuple[Losses, ...]

    @property
    def updates(self) -> list[int]:
        """Number of updates that each image took in all."""
        return [sum(map(len, of_image)) for of_image in zip(*self.losses, strict=True)]


@torch.enable_grad()
def optimise(embeds: Tensor, loss: RowsLoss, iterations: int, lr: float, enough: float) -> tuple[Tensor, Losses]:
    """Embeddings [B, L, D] after a fresh Adam, each image on its own.

    As in the official code the loss is looked at after the update. An image whose loss is below `enough` takes no
    further part, so neither its result nor the others' depend on the batch.
    """
    rows = [row.detach().float().clone().requires_grad_() for row in embeds.split(1)]
    adam = torch.optim.Adam(rows, lr)
    losses: list[list[float]] = [[] for _ in rows]
    learning = list(range(len(rows)))
    for iteration in range(iterations):
        found = loss(torch.cat([rows[i] for i in learning]), learning, iteration)
        adam.zero_grad()  # rows that have stopped get no gradient and are left alone
        found.sum().backward()
        adam.step()
        values = found.tolist()
        for i, value in zip(learning, values, strict=True):
            losses[i].append(value)
        learning = [i for i, value in zip(learning, values, strict=True) if value >= enough]
        if not learning:
            break
    return torch.cat(rows).detach(), tuple(map(tuple, losses))


def follow(
    backbone: Backbone,
    ddim: Ddim,
    pivots: Tensor,
    learned: Prompt,
    fixed: Prompt,
    weight: float,
    schedule: NullTextSchedule,
) -> tuple[tuple[Prompt, ...], tuple[Losses, ...]]:
    """A prompt for every timestep with which sampling follows the pivots [n + 1, B, 4, h, w]; and the losses.

    Each starts from the one before it. The noise is eps(fixed) + weight (eps(learned) - eps(fixed)), the fixed prompt's
    prediction is made once a timestep, and the loss is ||z*_(t-1) - z_(t-1)||^2 as a mean (eq. 3).

    Args:
        learned: prompt from which the first timestep starts; fixed: the other prompt of the guidance.
        weight: 1 - w if the empty prompt is learned, w if the image's is.
    """

    def learn(step: int, x: Tensor, learned: Prompt) -> tuple[Prompt, Losses, Tensor]:
        """The step's prompt, its losses and the latent to which it leads."""
        t = ddim.timesteps[step]
        other = predict_noise(backbone, x, t, fixed)

        def moved(prompt: Prompt, rows: list[int]) -> Tensor:
            noise = other[rows] + weight * (predict_noise(backbone, x[rows], t, prompt) - other[rows])
            return ddim.move(x[rows], noise, step, step + 1)

        def loss(embeds: Tensor, rows: list[int], iteration: int) -> Tensor:
            return mse(moved(replace(learned[rows], embeds=embeds), rows), pivots[step + 1][rows])

        embeds, losses = optimise(learned.embeds, loss, *schedule.at(step))
        found = replace(learned, embeds=embeds)
        return found, losses, moved(found, list(range(len(x))))

    x, prompts, losses = pivots[0], [], []
    for step in range(len(ddim)):
        learned, found, x = learn(step, x, learned)
        prompts.append(learned)
        losses.append(found)
    return tuple(prompts), tuple(losses)


class NullText(GuidedEditor):
    """Null-text inversion: DDIM pivots at guidance 1, then n optimisations of the empty prompt at guidance w.

    Args:
        schedule: schedule of the optimisations.
    """

    name = "null_text"

    def __init__(
        self,
        backbone: Backbone,
        ddim: Ddim,
        guidance: float = 7.5,
        sharing: Sharing | None = None,
        schedule: NullTextSchedule | None = None,
    ) -> None:
        super().__init__(backbone, ddim, guidance, sharing)
        self.schedule = schedule or NullTextSchedule()

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {**super().settings, "schedule": asdict(self.schedule)}

    def trajectory(self, source: EncodedSource) -> Trajectory:
        """The noisiest pivot and the optimised prompts."""
        return self.fit(source).trajectory

    def fit(self, source: EncodedSource) -> NullTextFit:
        """The trajectory with the losses."""
        pivots = self.pivots(source)
        nulls, losses = follow(
            self.backbone, self.ddim, pivots, source.null, source.prompt, 1 - self.guidance, self.schedule
        )
        return NullTextFit(Trajectory(pivots[0], source.prompt, nulls), losses)

    def pivots(self, source: EncodedSource) -> Tensor:
        """Latents that sampling is to follow, [n + 1, B, 4, h, w]."""
        return ddim_pivots(self.backbone, self.ddim, source.latent, source.prompt)
