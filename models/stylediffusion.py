"""StyleDiffusion (Li et al. 2023): values of cross attention learned so that guided sampling follows an image's pivots.

`StepLoss` is the objective of one DDIM step, shared by the two trainings; `fit_modulations` is the paper's: one
network for each image and timestep, from the noisiest to the cleanest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .attention import controlled
from .attention_edits import injection
from .attention_maps import Record
from .backbone import Backbone
from .ddim import Ddim, predict_noise
from .options import FitSchedule, Form, StyleObjective
from .own_dtype import GradientScale
from .text import Prompt, concatenate
from .value_mapper import DirectValues, Modulation, TokenMapper

_LOOKED_EVERY = 10
"""Iterations between looks at whether all images have stopped: on a GPU a look waits for it."""


@dataclass(frozen=True)
class StepReference:
    """Prediction and maps that a step is compared with; no gradients.

    Args:
        unconditional: noise of the empty prompt at the step's latent [B, 4, h, w].
        maps: cross maps of the pivot at the same step, by layer [B, heads, Q, L].
    """

    unconditional: Tensor
    maps: dict[str, Tensor]


class GuidedStep:
    """One guided DDIM step with mapped embeddings, and how far it is from the pivots.

    Gradients cross the conditional pass alone, as in the official code: the unconditional one has no mapped values.

    Args:
        backbone: frozen.
        ddim: the steps.
        objective: the loss.
    """

    def __init__(self, backbone: Backbone, ddim: Ddim, objective: StyleObjective) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.objective = objective
        self._timesteps = torch.tensor(ddim.timesteps)

    @torch.no_grad()
    def reference(self, x: Tensor, pivot: Tensor, steps: Tensor, prompt: Prompt, null: Prompt) -> StepReference:
        """The reference at latents x [B, 4, h, w] with their pivots, at steps [B], in one evaluation of 2 B rows."""
        t = self.timesteps(steps)
        if not self.objective.attention_weight:
            return StepReference(predict_noise(self.backbone, x, t, null), {})
        record = self._record(x)
        with controlled(self.backbone.unet, [record]):
            both = predict_noise(self.backbone, torch.cat([x, pivot]), torch.cat([t, t]), concatenate([null, prompt]))
        if not record.found:
            layers = f"{' and '.join(self.objective.attention_blocks)} have no cross-attention maps"
            height, width = self.backbone.map_size(self.objective.attention_side, x)
            raise ValueError(
                f"{layers} of {height} x {width}; set objective.attention_side to a quarter of sample_size"
            )
        return StepReference(both[: len(x)], {name: maps[len(x) :].float() for name, maps in record.found.items()})

    def mapped(
        self, x: Tensor, steps: Tensor, prompt: Prompt, unconditional: Tensor, modulation: Modulation
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The next latent with guidance, and the cross maps by layer; gradients reach the modulation."""
        scale = GradientScale(self.backbone.unet.dtype)
        embeds = scale.enter(modulation(prompt.embeds.float()))
        rule = injection(embeds, self.objective.into)
        record = self._record(x)
        rules = [rule, record] if self.objective.attention_weight else [rule]
        with controlled(self.backbone.unet, rules):
            conditional = predict_noise(self.backbone, x, self.timesteps(steps), prompt, scale)
        conditional, *maps = scale.leave(conditional, *(maps.float() for maps in record.found.values()))
        noise = unconditional + self.objective.guidance * (conditional - unconditional)
        return self.ddim.next_latent(x, noise, steps), dict(zip(record.found, maps, strict=True))

    @torch.no_grad()
    def advance(self, x: Tensor, steps: Tensor, prompt: Prompt, null: Prompt, modulation: Modulation) -> Tensor:
        """The next latents of x [B, 4, h, w] at steps [B] as sampling makes them, in one evaluation of 2 B rows."""
        count, t = len(x), self.timesteps(steps)
        rule = injection(modulation(prompt.embeds.float()), self.objective.into, slice(count, 2 * count))
        with controlled(self.backbone.unet, [rule]):
            both = predict_noise(self.backbone, torch.cat([x, x]), torch.cat([t, t]), concatenate([null, prompt]))
        unconditional, conditional = both.chunk(2)
        noise = unconditional + self.objective.guidance * (conditional - unconditional)
        return self.ddim.next_latent(x, noise, steps)

    def losses(
        self, x: Tensor, target: Tensor, steps: Tensor, prompt: Prompt, reference: StepReference, modulation: Modulation
    ) -> tuple[Tensor, Tensor]:
        """L_rec [B], the mean squared error to the pivot's next latent `target`, and L_attn [B], summed over layers."""
        latent, maps = self.mapped(x, steps, prompt, reference.unconditional, modulation)
        attention = torch.zeros(len(x), device=x.device)
        if self.objective.attention_weight:
            attention = sum(((maps[name] - reference.maps[name]).square().mean((1, 2, 3)) for name in maps), attention)
        return (latent - target).square().mean((1, 2, 3)), attention

    def _record(self, latent: Tensor) -> Record:
        size = self.backbone.map_size(self.objective.attention_side, latent)
        return Record(size, prefixes=self.objective.attention_blocks)

    def timesteps(self, steps: Tensor) -> Tensor:
        """Timestep indices [B] of steps [B]."""
        if self._timesteps.device != steps.device:
            self._timesteps = self._timesteps.to(steps.device)
        return self._timesteps[steps]


@torch.no_grad()
def amortised(mapper: nn.Module, image_tokens: Tensor, ddim: Ddim, prompt: Prompt) -> tuple[Modulation, ...]:
    """The modulation of every step as one network for all images gives it, from tokens [B, N, D]."""
    dtype = next(mapper.parameters()).dtype
    tokens, embeds = image_tokens.to(dtype), prompt.embeds.to(dtype)
    steps = (torch.full((len(tokens),), t, device=tokens.device) for t in ddim.timesteps)
    return tuple(Modulation(*mapper(tokens, t, embeds)) for t in steps)


@dataclass(frozen=True)
class Fitted:
    """Results that a fit has found for B images.

    Args:
        modulations: one for each step.
        latents: [n + 1, B, 4, h, w], the path of guided sampling with them.
        losses: [n, B], the loss of each step at its last iteration.
        iterations: [n, B], how many each image took.
    """

    modulations: tuple[Modulation, ...]
    latents: Tensor
    losses: Tensor
    iterations: Tensor


def fit_modulations(
    step: GuidedStep,
    image_tokens: Tensor,
    pivots: Tensor,
    prompt: Prompt,
    null: Prompt,
    schedule: FitSchedule,
    start: Sequence[Modulation] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Fitted:
    """Fit B images, each on its own: no image's result depends on the others.

    Args:
        step: the objective on a backbone and its steps.
        image_tokens: [B, N, D], computed once.
        pivots: [n + 1, B, 4, h, w] (models.ddim).
        prompt, null: prompts of the images and the empty one, [B] each.
        start: modulations to which the networks add, one for each step (an amortised network's); without them the
            networks start at random, as in the paper.
        progress: called after every step.
    """
    image_tokens = image_tokens.float()  # what is learned is float32, whatever the frozen models are
    learner = _learner(schedule.form, image_tokens, prompt.embeds.float(), at_zero=start is not None)
    latents, modulations, losses, counts = [pivots[0]], [], [], []
    for number in range(len(step.ddim)):
        x = latents[-1]
        steps = torch.full((len(x),), number, device=x.device)
        reference = step.reference(x, pivots[number], steps, prompt, null)
        base = None if start is None else start[number]

        def modulation(base: Modulation | None = base) -> Modulation:
            own: Modulation = learner(image_tokens)
            return own if base is None else own + base

        def loss(
            x: Tensor = x,
            steps: Tensor = steps,
            reference: StepReference = reference,
            target: Tensor = pivots[number + 1],
        ) -> Tensor:
            rec, attention = step.losses(x, target, steps, prompt, reference, modulation())
            return rec + step.objective.attention_weight * attention

        last, count = _minimise(loss, list(learner.parameters()), *schedule.at(number))
        with torch.no_grad():
            modulations.append(modulation().copy())
            latents.append(step.mapped(x, steps, prompt, reference.unconditional, modulations[-1])[0])
        losses.append(last)
        counts.append(count)
        progress()
    return Fitted(tuple(modulations), torch.stack(latents), torch.stack(losses), torch.stack(counts))


def _learner(form: Form | Literal["direct"], image_tokens: Tensor, embeds: Tensor, at_zero: bool) -> nn.Module:
    """What is optimised for B images, warm from timestep to timestep."""
    if form == "direct":
        return DirectValues(torch.zeros_like(embeds) if at_zero else embeds)
    _, count, width = image_tokens.shape
    mapper = TokenMapper((count, width), (embeds.shape[1], embeds.shape[2]), form, len(embeds), at_zero)
    return mapper.to(image_tokens.device)


@torch.enable_grad()
def _minimise(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], iterations: int, lr: float, enough: float
) -> tuple[Tensor, Tensor]:
    """Adam on losses [B] whose row b depends on row b of the parameters alone; a row below `enough` stops.

    Returns each row's last loss and its number of iterations.
    """
    optimizer = torch.optim.Adam(parameters, lr)
    count = len(parameters[0])
    device = parameters[0].device
    active = torch.ones(count, dtype=torch.bool, device=device)
    last, taken = torch.full((count,), math.nan, device=device), torch.zeros(count, dtype=torch.long, device=device)
    for iteration in range(iterations):
        losses = loss()
        gradients = torch.autograd.grad(losses.sum(), parameters)
        held = [parameter.detach().clone() for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        with torch.no_grad():
            for parameter, before in zip(parameters, held, strict=True):
                parameter[~active] = before[~active]
        last = torch.where(active, losses.detach(), last)
        taken += active
        active = active & (losses.detach() >= enough)
        looked = device.type == "cpu" or iteration % _LOOKED_EVERY == _LOOKED_EVERY - 1
        if looked and not bool(active.any()):
            break
    return last, taken
