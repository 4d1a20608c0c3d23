"""TurboEdit's algorithms on latents: an inversion's steps, and the generator on its noises with other embeddings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .attention import Rule, controlled
from .attention_maps import AttentionMaps, Capture
from .frozen_attention import frozen_attention
from .generator import FewStepGenerator
from .masks import changed_places, difference_mask, soft_mask, unchanged
from .noise_encoder import NoisePosterior
from .options import Outside
from .text import Prompt, concatenate
from .turboedit_inversion import TurboEditInversion
from .turboedit_wishes import Wish


@dataclass(frozen=True)
class InversionStep:
    """One step of an inversion.

    Args:
        posterior: the encoder's Gaussian.
        noise: what was taken of it, [B, 4, h, w].
        reconstruction: the generator's x0 from that noise, [B, 4, h, w].
    """

    posterior: NoisePosterior
    noise: Tensor
    reconstruction: Tensor


Encode = Callable[[Tensor, Tensor, Prompt, Tensor], tuple[Tensor, Tensor]]
"""A NoiseEncoder, or what wraps one: mean and log-variance of (x0, previous reconstruction, prompt, t)."""


def _mean(posterior: NoisePosterior) -> Tensor:
    return posterior.mean


def inversion_step(
    encode: Encode,
    few_step: FewStepGenerator,
    x0: Tensor,
    previous: Tensor,
    prompt: Prompt,
    step: int,
    draw: Callable[[NoisePosterior], Tensor] = _mean,
) -> InversionStep:
    """Step number `step` of Algorithm 1 from the `previous` reconstruction [B, 4, h, w] of latents x0 [B, 4, h, w].

    Args:
        draw: what is taken of the encoder's Gaussian, by default its mean.
    """
    t = torch.full((len(x0),), few_step.timesteps[step], device=x0.device)
    posterior = NoisePosterior(*encode(x0, previous, prompt, t))
    noise = draw(posterior)
    x_t = few_step.schedule.add_noise(previous, noise, t)
    return InversionStep(posterior, noise, few_step.predict_x0(x_t, prompt, t))


def inversion_steps(
    encode: Encode,
    few_step: FewStepGenerator,
    x0: Tensor,
    prompt: Prompt,
    draw: Callable[[NoisePosterior], Tensor] = _mean,
) -> Iterator[InversionStep]:
    """Algorithm 1 on latents x0 [B, 4, h, w]: a step at each of the generator's timesteps, when it is asked for."""
    reconstruction = torch.zeros_like(x0)
    for number in range(len(few_step.timesteps)):
        step = inversion_step(encode, few_step, x0, reconstruction, prompt, number, draw)
        reconstruction = step.reconstruction
        yield step


@dataclass(frozen=True)
class AutomaticMask:
    """A mask that the edit itself finds: its kind, share of the strongest place, softness in latent pixels."""

    kind: Literal["prediction", "attention"]
    threshold: float
    blur: float


@dataclass(frozen=True)
class EditSteps:
    """The evaluations of an edit.

    Args:
        few_step: the generator at the inversion's timesteps.
        resolution: side of the cross-attention maps that make an automatic mask, for latents of the UNet's own size.
    """

    few_step: FewStepGenerator
    resolution: int

    def attention(self, inversion: TurboEditInversion) -> Tensor:
        """The maps [B, h, w, L] that `invert` would have gathered; one UNet evaluation a step."""
        maps = self._maps(inversion)
        with self._controlled([Capture(maps)]):
            for i, before in enumerate((torch.zeros_like(inversion.noises[0]), *inversion.reconstructions[:-1])):
                self._predict(inversion, i, inversion.prompt, before, beside_source=False)
        return maps.mean()

    def freezing(self, inversion: TurboEditInversion, wishes: Sequence[Wish], frozen_steps: int) -> list[Rule]:
        """What holds in the frozen steps; nothing if there are none.

        Raises:
            ValueError: more frozen steps than the inversion has, or several descriptions of a source or an edit.
        """
        num_steps = len(inversion.timesteps)
        if not 0 <= frozen_steps <= num_steps:
            raise ValueError(f"frozen_steps is {frozen_steps}; expected 0 to {num_steps}, the inversion's steps")
        if not frozen_steps:
            return []
        assert self.few_step.backbone.unet is not None, "of another network it says that there is none"
        if len(wishes) > 1:
            raise ValueError(f"attention can be frozen for one edit at a time, but prompt has {len(wishes)} of them")
        if any(len(texts) > 1 for texts in inversion.texts):
            raise ValueError("attention cannot be frozen on top of several attributes at once; set frozen_steps to 0")
        text, (height, width) = self.few_step.backbone.text, inversion.size
        assert text is not None, "a pipeline has text encoders"
        sources = [texts[0] for texts in inversion.texts]
        return frozen_attention(text, sources, wishes[0].texts, wishes[0].strengths, -(-height // 2) * -(-width // 2))

    def edit(
        self,
        inversion: TurboEditInversion,
        wishes: Sequence[Wish],
        prompt: Prompt,
        mask: Tensor | AutomaticMask | None,
        outside: Outside,
        frozen_steps: int,
        after_step: Callable[[int, Tensor], Tensor],
    ) -> tuple[TurboEditInversion, Tensor | None]:
        """The inversion of the R edited pictures, and the mask [R, 1, h, w] of the last step.

        Args:
            inversion: R sources; with their attention if the mask follows it.
            wishes, prompt: descriptions of the R edits, and their embeddings.
            mask: where the picture may change, [R, 1, h, w] in [0, 1].
            outside: what stands in the end where nothing changed: outside of the mask, and inside as far as it is
                `unchanged`.
            after_step: takes the number of a step and the estimate of x0 after it, gives the one to go on with.
        """
        freezing = self.freezing(inversion, wishes, frozen_steps)
        x0, count, num_steps = torch.zeros_like(inversion.noises[0]), len(inversion), len(inversion.timesteps)
        automatic = mask if isinstance(mask, AutomaticMask) else None
        masks = mask if isinstance(mask, Tensor) else None
        picture = _picture(inversion, outside)
        maps = self._maps(inversion) if automatic and automatic.kind == "attention" else None
        watching = [] if maps is None else [Capture(maps, slice(-count, None))]
        first, reconstructions = x0, list[Tensor]()
        for rules, steps in ((freezing, range(frozen_steps)), ([], range(frozen_steps, num_steps))):
            with self._controlled([*rules, *watching]):
                for i in steps:
                    x0 = self._predict(inversion, i, prompt, x0, beside_source=bool(rules))
                    if i == 0:
                        first = x0
                    if automatic and maps is not None:
                        masks = self._word_masks(inversion, wishes, maps.mean(), automatic)
                    elif automatic and i == 0:
                        masks = _prediction_masks(inversion, x0, automatic, self.few_step.backbone.network_dtype)
                    source = inversion.reconstructions[i]
                    made = _composed(masks, x0, source)
                    last = i + 1 == num_steps
                    in_the_end = x0 + unchanged(x0, source) * (picture - source)
                    x0 = after_step(i, _composed(masks, in_the_end, picture) if last else made)
                    # The last one stays the generator's: from it a next edit knows what the reconstruction misses.
                    reconstructions.append(made if last else x0)
        edited = replace(
            inversion,
            reconstructions=tuple(reconstructions),
            prompt=prompt,
            texts=tuple(zip(*(wish.texts for wish in wishes), strict=True)),
            attention=None if maps is None else maps.mean(),
            latent=x0.clone(),  # no tensor of a file may share its memory with another
            first=first.clone(),
        )
        return edited, masks

    def _controlled(self, rules: Sequence[Rule]) -> AbstractContextManager[Any]:
        """A block in which the UNet obeys rules; without any, of which other networks know none, all is as ever."""
        return controlled(self.few_step.backbone.unet, rules) if rules else nullcontext()

    def _maps(self, inversion: TurboEditInversion) -> AttentionMaps:
        return AttentionMaps(self.few_step.backbone.map_size(self.resolution, inversion.noises[0]))

    def _word_masks(
        self, inversion: TurboEditInversion, wishes: Sequence[Wish], maps: Tensor, options: AutomaticMask
    ) -> Tensor:
        """Mask [R, 1, h, w] from the attention to the words that are in one prompt only, of all wishes together."""
        before, text = inversion.attention, self.few_step.backbone.text
        assert before is not None and text is not None, "an edit with an automatic mask has gathered attention"
        tokenizer, threshold = text.tokenizers[0], options.threshold
        places = [changed_places(tokenizer, inversion.texts, w.texts, before, maps, threshold) for w in wishes]
        return soft_mask(torch.stack(places).amax(0), inversion.size, options.blur)

    def _predict(
        self, inversion: TurboEditInversion, i: int, prompt: Prompt, x0: Tensor, beside_source: bool
    ) -> Tensor:
        """G's estimate [R, 4, h, w] after step `i`, whose noise is added to the estimate `x0` before it.

        Args:
            beside_source: evaluate the inversion's own step in rows before those of the edit, for rules to take from.
        """
        noise, count = inversion.noises[i], len(x0)
        t = torch.full((count,), inversion.timesteps[i], device=x0.device)
        if beside_source:
            before = inversion.reconstructions[i - 1] if i else torch.zeros_like(x0)
            x0, noise, t = torch.cat([before, x0]), torch.cat([noise, noise]), torch.cat([t, t])
            prompt = concatenate([inversion.prompt, prompt])
        return self.few_step.predict_x0(self.few_step.schedule.add_noise(x0, noise, t), prompt, t)[-count:]


def _prediction_masks(inversion: TurboEditInversion, x0: Tensor, options: AutomaticMask, dtype: torch.dtype) -> Tensor:
    """Mask [R, 1, h, w] from the first estimates of the edit and of its source, which see the same noise."""
    before = inversion.reconstructions[0] if inversion.first is None else inversion.first
    return soft_mask(difference_mask(x0 - before, options.threshold, dtype), inversion.size, options.blur)


def _composed(masks: Tensor | None, inside: Tensor, outside: Tensor) -> Tensor:
    """An estimate [R, 4, h, w] that has `outside` where the masks are 0; where there are none, all of `inside`."""
    return inside if masks is None else masks * inside + (1 - masks) * outside


def _picture(inversion: TurboEditInversion, outside: Outside) -> Tensor:
    """What stands in the end where nothing changed: the source itself, or its last reconstruction.

    In the steps before it is their reconstruction: it is what the inversion's noises belong to.
    """
    if outside == "reconstruction" or inversion.latent is None:
        return inversion.reconstructions[-1]
    return inversion.latent
