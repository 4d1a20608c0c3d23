"""Prompt-to-Prompt (Hertz et al. 2022): source and target are sampled together and share attention.

Both branches are sampled side by side under guidance, and the target takes the source's attention for a share of the
steps.

Everything that keeps the source branch on a real image (null-text embeddings, mapped values, pivots) is a
`Trajectory`; every inversion method ends in one, and all of them are edited by the same loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from .attention import Rows, Rule, controlled
from .attention_edits import Alignment, CrossEdit, SelfReplacement, injection
from .backbone import Backbone
from .ddim import Ddim, predict_noise
from .options import Into
from .text import Prompt, concatenate


@dataclass(frozen=True)
class Trajectory:
    """Start of sampling for B images, and what keeps the source branch on them.

    Args:
        start: the noisiest latent [B, 4, h, w].
        prompt: the source's prompt [B].
        nulls: the unconditional prompt [B] of every step.
        values: source of cross attention's values at every step, as a function of a prompt's embeddings [B, L, D]
            (StyleDiffusion); None for the prompt itself.
        into: where those go; keys and both are StyleDiffusion's ablation.
        pivots: [n + 1, B, 4, h, w], to which the source branch is set after a step, or None.
        pivots_from: the first step after which it is; 0 is direct inversion.
        target_values: what `values` is, for the target branch of an edit; None for the same.
    """

    start: Tensor
    prompt: Prompt
    nulls: tuple[Prompt, ...]
    values: tuple[Callable[[Tensor], Tensor], ...] | None = None
    into: Into = "values"
    pivots: Tensor | None = None
    pivots_from: int = 0
    target_values: tuple[Callable[[Tensor], Tensor], ...] | None = None


@dataclass(frozen=True)
class Sharing:
    """Shares that the target branch takes from the source branch, as shares of all steps from the noisiest on.

    They become whole steps as in the official codes: maps of self attention for int(share n) of n steps, those of cross
    attention for int(share (n + 1)), as the code of Prompt-to-Prompt counts a step more there, and values as long as
    fewer than share n steps are done.

    Args:
        cross: tau_c, cross-attention maps of the words that both prompts have.
        self_: tau_s, self-attention maps of the conditional passes; one share for all images or one for each.
        unconditional: tau_u, self-attention maps of the unconditional passes (StyleDiffusion's P2Plus).
        values: tau_v, mapped values for the target's prompt too, where the trajectory has such.
        max_scale: self-attention maps up to this part of the latent's sides are taken; in the official code a half, 32
            of 64.
    """

    cross: float = 0.6
    self_: float | tuple[float, ...] = 0.6
    unconditional: float = 0.0
    values: float = 0.5
    max_scale: float = 0.5

    def __post_init__(self) -> None:
        for name in ("cross", "self_", "unconditional", "values"):
            found = getattr(self, name)
            if not all(0 <= share <= 1 for share in (found if isinstance(found, tuple) else (found,))):
                raise ValueError(f"{name} is {found}, expected a share of the steps between 0 and 1")

    def shares_cross(self, step: int, num_steps: int) -> bool:
        """Whether the step (0 the noisiest) of `num_steps` takes cross-attention maps."""
        return step < whole_steps(self.cross, num_steps + 1)

    def max_queries(self, latent: Tensor) -> int:
        """Queries of the largest self-attention maps that are taken, for latents [..., h, w]."""
        height, width = latent.shape[-2:]
        return ceil(height * self.max_scale) * ceil(width * self.max_scale)


def whole_steps(share: float, num_steps: int) -> int:
    """`share` of the steps rounded down, but for errors of the arithmetic: 1 - 0.8 of 50 steps are 10."""
    return int(share * num_steps + 1e-6)


NOTHING = Sharing(0.0, 0.0, 0.0, 0.0)
"""Plain sampling of the target's prompt from the same start."""

Guidance = float | Callable[[int, Tensor, Tensor], Tensor]
"""Weight w of classifier-free guidance, null + w (prompt - null), or (step, null's noise, prompt's noise) -> noise."""

StepAlignment = Callable[[int], Alignment | None]
"""step -> the alignment of that step (word_alignment.word_schedule), or None where cross attention is not shared."""

Blend = Callable[[int, Tensor, Tensor], Tensor]
"""(step, source latents, target latents) after that step -> the target latents that go on (a local blend)."""


@torch.no_grad()
def reconstruct(backbone: Backbone, ddim: Ddim, trajectory: Trajectory, guidance: Guidance, first: int = 0) -> Tensor:
    """The source branch alone: latents [n + 1 - first, B, 4, h, w] from the trajectory's start to the image.

    Args:
        first: the level of the trajectory's start; 0 is the noisiest.
    """
    count = len(trajectory.start)
    levels = [trajectory.start]
    for step in range(first, len(ddim)):
        t, x = ddim.timesteps[step], levels[-1]
        rules = _value_rules(trajectory, step, slice(count, 2 * count))
        pair = _evaluate(backbone, x, t, trajectory.nulls[step], trajectory.prompt, rules)
        noise = _combined(guidance, step, *pair)
        levels.append(_corrected(trajectory, step, ddim.move(x, noise, step, step + 1)))
    return torch.stack(levels)


def edit(
    backbone: Backbone,
    ddim: Ddim,
    trajectory: Trajectory,
    target: Prompt,
    guidance: Guidance,
    sharing: Sharing = NOTHING,
    alignment: Alignment | StepAlignment | None = None,
    blend: Blend | None = None,
    rules: tuple[Rule, ...] = (),
) -> Tensor:
    """The edited latents [B, 4, h, w]: the second of `sample_pairs`, to which the arguments go."""
    return sample_pairs(backbone, ddim, trajectory, target, guidance, sharing, alignment, blend, rules)[1]


@torch.no_grad()
def sample_pairs(
    backbone: Backbone,
    ddim: Ddim,
    trajectory: Trajectory,
    target: Prompt,
    guidance: Guidance,
    sharing: Sharing = NOTHING,
    alignment: Alignment | StepAlignment | None = None,
    blend: Blend | None = None,
    rules: tuple[Rule, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The latents [B, 4, h, w] of the source branch and the edited ones of the target branch.

    The rows of one evaluation are [null of source, null of target, source, target], B of each.

    Args:
        target: prompt [B] of the edit.
        alignment: alignment of the two prompts' words, for the first `sharing.cross` of the steps; one that depends on
            the step says itself when it ends. Without one cross attention is not shared.
        blend: keeps places of the source.
        rules: more rules for all evaluations, capturing ones for instance; they see the rows above.
    """
    count, num_steps = len(trajectory.start), len(ddim)
    null_source, null_target, source, goal = (slice(i * count, (i + 1) * count) for i in range(4))
    x = torch.cat([trajectory.start, trajectory.start])
    max_queries = sharing.max_queries(x)
    for step, t in enumerate(ddim.timesteps):
        both = concatenate([trajectory.prompt, target])
        nulls = concatenate([trajectory.nulls[step]] * 2)
        active = _value_rules(trajectory, step, source)
        if step < sharing.values * num_steps - 1e-6:
            active += _target_value_rules(trajectory, step, goal, target)
        if callable(alignment):
            aligned = alignment(step)
        else:
            aligned = alignment if sharing.shares_cross(step, num_steps) else None
        if aligned is not None:
            active.append(CrossEdit(source, goal, aligned))
        active += _self_rules(sharing, source, goal, step, num_steps, max_queries)
        if step < whole_steps(sharing.unconditional, num_steps):
            active.append(SelfReplacement(null_source, null_target, max_queries))
        pair = _evaluate(backbone, x, t, nulls, both, [*active, *rules])
        x = ddim.move(x, _combined(guidance, step, *pair), step, step + 1)
        kept, edited = _corrected(trajectory, step, x[:count]), x[count:]
        if blend is not None:
            edited = blend(step, kept, edited)
        x = torch.cat([kept, edited])
    return x[:count], x[count:]


def _evaluate(
    backbone: Backbone, x: Tensor, t: int, nulls: Prompt, prompts: Prompt, rules: Sequence[Rule]
) -> tuple[Tensor, Tensor]:
    """The noise in x [B, 4, h, w] as `nulls` and as `prompts` [B] see it, in one evaluation of 2 B rows."""
    with controlled(backbone.unet, rules):
        unconditional, conditional = predict_noise(backbone, torch.cat([x, x]), t, concatenate([nulls, prompts])).chunk(
            2
        )
    return unconditional, conditional


def _combined(guidance: Guidance, step: int, unconditional: Tensor, conditional: Tensor) -> Tensor:
    if callable(guidance):
        return guidance(step, unconditional, conditional)
    return unconditional + guidance * (conditional - unconditional)


def _value_rules(trajectory: Trajectory, step: int, rows: Rows) -> list[Rule]:
    """Mapped values for the source's rows, if the trajectory has such."""
    return [] if trajectory.values is None else [_mapped(trajectory, trajectory.values, step, rows, trajectory.prompt)]


def _target_value_rules(trajectory: Trajectory, step: int, rows: Rows, target: Prompt) -> list[Rule]:
    """Mapped values for the target's rows, if the trajectory has such."""
    values = trajectory.target_values or trajectory.values
    return [] if values is None else [_mapped(trajectory, values, step, rows, target)]


def _mapped(
    trajectory: Trajectory, values: Sequence[Callable[[Tensor], Tensor]], step: int, rows: Rows, prompt: Prompt
) -> Rule:
    return injection(values[step](prompt.embeds), trajectory.into, rows)


def _self_rules(
    sharing: Sharing, source: slice, goal: slice, step: int, num_steps: int, max_queries: int
) -> list[Rule]:
    """Self-attention maps of the source for the images that still share them at a step of `num_steps`."""
    if not isinstance(sharing.self_, tuple):
        return [SelfReplacement(source, goal, max_queries)] if step < whole_steps(sharing.self_, num_steps) else []
    rows = [row for row, share in enumerate(sharing.self_) if step < whole_steps(share, num_steps)]
    taken, given = ([branch.start + row for row in rows] for branch in (source, goal))
    return [SelfReplacement(taken, given, max_queries)] if rows else []


def _corrected(trajectory: Trajectory, step: int, source: Tensor) -> Tensor:
    """The source branch after a step: as sampled, or the pivot that it should be."""
    return source if trajectory.pivots is None or step < trajectory.pivots_from else trajectory.pivots[step + 1]
