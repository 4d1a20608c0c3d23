"""Variants of null-text inversion in its paper's ablation (Mokady et al. 2023, section 4 and fig. 4).

All end in a trajectory, so that they can be edited too. Where the paper leaves something open, the docstring says
what is done.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from eval.editors.few_steps import full
from eval.editors.guided import EncodedSource, noised
from eval.editors.null_text import Losses, NullText, NullTextFit, follow, optimise
from eval.editors.options import NEVER
from eval.editors.randomness import image_keys, image_noise, image_seed
from eval.metrics.pixels import mse
from models.ddim import predict_noise
from models.prompt_to_prompt import Trajectory
from models.text import Prompt


class RandomPivot(NullText):
    """Pivots are the image's latent with one noise w at all levels: z*_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) w."""

    name = "null_text_random_pivot"

    def pivots(self, source: EncodedSource) -> Tensor:
        """[n + 1, B, 4, h, w]; the last is the latent itself."""
        noise = image_noise(image_keys(source.images), self.name, 0, source.latent)
        return torch.stack([noised(self.ddim, source.latent, noise, level) for level in range(len(self.ddim) + 1)])


def random_captions(images: Tensor, prompts: Sequence[str], captions: Sequence[str]) -> list[str]:
    """Choose for each image one of `captions` that is not its own, to invert it with.

    Raises ValueError if there is none.
    """
    chosen = []
    for key, own in zip(image_keys(images), prompts, strict=True):
        others = [caption for caption in captions if caption != own]
        if not others:
            raise ValueError(f"captions hold nothing but the image's own, {own!r}; give more of them")
        chosen.append(others[image_seed(key, "random caption", 0) % len(others)])
    return chosen


class GlobalNullText(NullText):
    """One empty prompt for all timesteps (Algorithm 2): N rounds through them, one update at each.

    Adam and its learning rate last over all rounds; nothing stops early.
    """

    name = "null_text_global"

    def fit(self, source: EncodedSource) -> NullTextFit:
        """Sampling goes on with what has been learned so far."""
        pivots, ddim, guidance = self.pivots(source), self.ddim, self.guidance
        embeds = source.null.embeds.float().clone().requires_grad_()
        adam = torch.optim.Adam([embeds], self.schedule.lr)

        def moved(embeds: Tensor, x: Tensor, step: int, conditional: Tensor) -> Tensor:
            null = predict_noise(self.backbone, x, ddim.timesteps[step], replace(source.null, embeds=embeds))
            return ddim.move(x, null + guidance * (conditional - null), step, step + 1)

        losses: list[list[float]] = [[] for _ in embeds]
        for _ in range(self.schedule.iterations):
            x = pivots[0]
            for step, t in enumerate(ddim.timesteps):
                conditional = predict_noise(self.backbone, x, t, source.prompt)
                with torch.enable_grad():
                    loss = mse(moved(embeds, x, step, conditional), pivots[step + 1])
                    adam.zero_grad()
                    loss.sum().backward()
                adam.step()
                x = moved(embeds.detach(), x, step, conditional)
                for of_image, value in zip(losses, loss.tolist(), strict=True):
                    of_image.append(value)
        learned = replace(source.null, embeds=embeds.detach())
        trajectory = Trajectory(pivots[0], source.prompt, (learned,) * len(ddim))
        return NullTextFit(trajectory, (tuple(map(tuple, losses)),))


class WithoutPivot(NullText):
    """Every timestep's empty prompt learns to predict, under guidance, new noise at each update instead of a pivot.

    Sampling starts from the noisiest DDIM pivot all the same; nothing stops early.
    """

    name = "null_text_without_pivot"

    def fit(self, source: EncodedSource) -> NullTextFit:
        """Each timestep starts from the prompt of the one before it."""
        keys = image_keys(source.images)

        def learn(step: int, null: Prompt) -> tuple[Prompt, Losses]:
            t = self.ddim.timesteps[step]

            def loss(embeds: Tensor, rows: list[int], iteration: int) -> Tensor:
                latent = source.latent[rows]
                noise = image_noise([keys[i] for i in rows], f"{self.name} {step} {iteration}", 0, latent)
                x = self.backbone.schedule.add_noise(latent, noise, full(t, latent))
                conditional = predict_noise(self.backbone, x, t, source.prompt[rows])
                unconditional = predict_noise(self.backbone, x, t, replace(null[rows], embeds=embeds))
                return mse(unconditional + self.guidance * (conditional - unconditional), noise)

            iterations, lr, _ = self.schedule.at(step)
            embeds, losses = optimise(null.embeds, loss, iterations, lr, enough=NEVER)
            return replace(null, embeds=embeds), losses

        null, nulls, losses = source.null, [], []
        for step in range(len(self.ddim)):
            null, found = learn(step, null)
            nulls.append(null)
            losses.append(found)
        return NullTextFit(Trajectory(self.pivots(source)[0], source.prompt, tuple(nulls)), tuple(losses))


class TextualInversion(NullText):
    """The prompt's own embedding learns to predict random noise in the image at random steps of the sampler (eq. 4).

    As many updates as null-text inversion takes at most, n N; then sampling from the noisiest DDIM pivot with guidance.
    """

    name = "textual_inversion"

    def fit(self, source: EncodedSource) -> NullTextFit:
        """One embedding for all timesteps."""
        keys = image_keys(source.images)

        def loss(embeds: Tensor, rows: list[int], iteration: int) -> Tensor:
            # The same timestep for all images, so that it does not depend on the batch.
            t = self.ddim.timesteps[image_seed(0, f"{self.name} {iteration}", 0) % len(self.ddim)]
            latent = source.latent[rows]
            noise = image_noise([keys[i] for i in rows], f"{self.name} {iteration}", 0, latent)
            x = self.backbone.schedule.add_noise(latent, noise, full(t, latent))
            return mse(predict_noise(self.backbone, x, t, replace(source.prompt[rows], embeds=embeds)), noise)

        total = self.schedule.iterations * len(self.ddim)
        embeds, losses = optimise(source.prompt.embeds, loss, total, self.schedule.lr, enough=NEVER)
        learned = replace(source.prompt, embeds=embeds)
        return NullTextFit(Trajectory(self.pivots(source)[0], learned, (source.null,) * len(self.ddim)), (losses,))


class PivotalTextualInversion(NullText):
    """The prompt's embedding is optimised at every timestep, along the pivots, in the place of the empty one.

    Cross attention gets what each timestep has learned, added to the prompt's own embedding; an edit adds it to the
    target's for the steps that `sharing.values` says.
    """

    name = "textual_inversion_pivot"

    def fit(self, source: EncodedSource) -> NullTextFit:
        """Null-text inversion with the roles of the two prompts changed."""
        pivots = self.pivots(source)
        learned, losses = follow(
            self.backbone, self.ddim, pivots, source.prompt, source.null, self.guidance, self.schedule
        )
        added = tuple(partial(torch.add, prompt.embeds - source.prompt.embeds) for prompt in learned)
        nulls = (source.null,) * len(self.ddim)
        return NullTextFit(Trajectory(pivots[0], source.prompt, nulls, added, into="both"), losses)
