"""ReNoise (Garibi et al. 2024) in the generator's few steps, with its own sampler and the official code's settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import (
    CLEAN,
    AncestralStep,
    ancestral_step,
    decode_latents,
    downwards,
    full,
    implied_noise,
    networks_of,
    size_ratio,
    target_prompt,
)
from eval.editors.noise_regularisation import autocorrelation, random_shifts
from eval.editors.randomness import image_keys, image_noise, image_seed
from models.ddim import predict_noise
from models.generator import FewStepGenerator
from models.text import Prompt, concatenate

NEARLY_CLEAN = 250
"""Timesteps below have a search of their own."""


@dataclass(frozen=True)
class Search:
    """Search for the fixed point of one inversion step: iterations + 1 evaluations, the last ones averaged.

    Args:
        averaged: the first evaluation that counts and the one behind the last, counted from 0.
    """

    iterations: int
    averaged: tuple[int, int]

    def __post_init__(self) -> None:
        first, end = self.averaged
        if not 0 <= first < end <= self.iterations + 1:
            raise ValueError(
                f"averaged is {self.averaged}; expected a first and an end among the {self.iterations + 1} evaluations"
            )


@dataclass(frozen=True)
class PatchRegularisation:
    """Gradient steps on a predicted noise towards the statistics of a noise that was predicted at a noised image.

    Args:
        divergence, autocorrelation: weights lambda of the patches' KL and of the pairs' correlation; the latter is that
            for latents of SDXL-Turbo's size, in others each step has the same effect.
        steps, rolls: numbers of rounds, and of draws of shifts in each.
    """

    divergence: float = 0.065
    autocorrelation: float = 20.0
    steps: int = 4
    rolls: int = 5

    @torch.enable_grad()
    def __call__(self, noise: Tensor, reference: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The regularised noise [B, C, h, w]; row i draws its shifts from generators[i]."""
        noise, rate = noise.detach(), self.autocorrelation / self.rolls * size_ratio(noise)
        for _ in range(self.steps):
            x = noise.requires_grad_()
            (gradient,) = torch.autograd.grad(patch_divergence(x, reference).sum(), x)
            noise = noise.detach() - self.divergence * gradient.clamp(-100, 100)
            for _ in range(self.rolls):
                shifts = random_shifts(noise.shape, generators).to(noise.device)
                x = noise.requires_grad_()
                (gradient,) = torch.autograd.grad(autocorrelation(x, shifts).sum(), x)
                noise = noise.detach() - rate * gradient
        return noise


def patch_divergence(noise: Tensor, reference: Tensor) -> Tensor:
    """[B]: over channels and patches of 4 x 4, twice the KL divergence of Gaussians with the patches' moments."""
    (mean, variance), (goal, spread) = _patch_moments(noise), _patch_moments(reference)
    variance, spread = variance + 1e-6, spread + 1e-6
    terms = (spread / variance).log() + (variance + (mean - goal).square()) / spread - 1
    return terms.abs().flatten(1).sum(1)


def _patch_moments(noise: Tensor, side: int = 4) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance [B, C, h / 4, w / 4]; what does not fill a patch is left out."""
    patches = noise.unfold(2, side, side).unfold(3, side, side).flatten(4)
    return patches.mean(-1), patches.var(-1)


def moved_towards(noise: Tensor, needed: Tensor, reach: float) -> Tensor:
    """`noise` [B, C, h, w] moved straight towards `needed`, each row by at most `reach` in the Euclidean norm."""
    distance = (needed - noise).flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return noise + (needed - noise) * (reach / distance).clamp_max(1)


@dataclass(frozen=True)
class RenoiseState:
    """Latents by level from the noisiest to the image's own, the z of each step but the last, the source's prompt."""

    latents: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]
    prompt: Prompt


class Renoise:
    """Inverts each step x_s -> x_t by asking the generator for the noise at the x_t that its last answer led to.

    The z of the sampler are drawn beforehand and corrected after the step, so that sampling leads back to x_s: the
    official code takes ten gradient steps of 1.8 on a norm, whose gradient is a unit vector, that is 18 at most
    towards the z that would be exact. The last step has no z and keeps its error. The official code asks once more
    there, in vain; that evaluation is left out.

    Args:
        search: search of all steps but those to a timestep below 250, which have `nearly_clean`.
        regularisation: regularisation of the predicted noise, or None.
        reach: largest correction in latents of SDXL-Turbo's size; in others it scales with the root of their size;
            infinity makes all steps but the last exact, 0 leaves it out.
        seed: seed of the z, the reference noise and the shifts.

    Raises:
        ValueError: the schedule begins in pure noise, as a flow's does.
    """

    name = "renoise"
    strengths = (0.7, 1.0, 1.3, 1.7)

    def __init__(
        self,
        generator: FewStepGenerator,
        search: Search = Search(9, (8, 10)),
        nearly_clean: Search = Search(5, (0, 5)),
        regularisation: PatchRegularisation | None = PatchRegularisation(),
        reach: float = 18.0,
        seed: int = 0,
    ) -> None:
        if generator.schedule.reaches_pure_noise:
            raise ValueError(
                "ReNoise finds the x_t of which a part stays in x_s; this schedule begins in pure noise, of which no "
                "part stays"
            )
        self.generator = generator
        self.backbone = generator.backbone
        self.networks = networks_of(self.backbone)
        self.search = search
        self.nearly_clean = nearly_clean
        self.regularisation = regularisation
        self.reach = reach
        self.seed = seed

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "timesteps": self.generator.timesteps,
            "search": asdict(self.search),
            "nearly_clean": asdict(self.nearly_clean),
            "regularisation": None if self.regularisation is None else asdict(self.regularisation),
            "reach": self.reach,
            "seed": self.seed,
        }

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """Inversion from the image's latent up to the noisiest timestep (Algorithm 1 of the paper)."""
        x = latent = self.backbone.encode_image(images)
        keys, prompt = image_keys(images), self.backbone.encode_text(prompts, self.backbone.size_of(latent))
        generators = [torch.Generator().manual_seed(image_seed(key, "renoise shifts", self.seed)) for key in keys]
        white = image_noise(keys, "renoise reference", self.seed, latent)
        latents, noises = [latent], []
        for t, s in reversed(downwards(self.generator.timesteps)):
            step = ancestral_step(self.generator.schedule, t, s)
            z = None if s == CLEAN else image_noise(keys, f"renoise {t}", self.seed, latent)
            noised = self.generator.schedule.add_noise(latent, white, full(t, latent))
            x_t = self._fixed_point(step, x, z, t, prompt, noised, generators)
            if z is not None:
                if self.reach:
                    needed = (x - step.forward(x_t, predict_noise(self.backbone, x_t, t, prompt), None)) / step.sigma
                    z = moved_towards(z, needed, self.reach * size_ratio(z) ** 0.5)
                noises.append(z)
            x = x_t
            latents.append(x)
        state = RenoiseState(tuple(reversed(latents)), tuple(reversed(noises)), prompt)
        named = dict(zip(self.generator.timesteps, state.noises, strict=False))
        return InvertedImages(tuple(prompts), named, state)

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Down again with the same z and the target's prompt; strength interpolates prompt embeddings."""
        prompt = target_prompt(self.backbone, inversion.state.prompt, request.prompt, request.strength)
        return decode_latents(self.backbone, self._denoise(inversion.state, prompt)[-1])

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """Down again with the same z and the source's prompt."""
        return self._denoise(inversion.state, inversion.state.prompt)

    def _fixed_point(
        self,
        step: AncestralStep,
        x: Tensor,
        z: Tensor | None,
        t: float,
        prompt: Prompt,
        noised: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """x_t [B, C, h, w] from which `step` leads to x.

        Args:
            z: the step's noise, or None if it has none.
            noised: the image at t, where the noise is predicted to whose statistics the others are held.
        """
        search = self.nearly_clean if t < NEARLY_CLEAN else self.search
        first, end = search.averaged
        # The official code starts at y_t = y_s, with y = x / sqrt(abar).
        guess, counted = x / step.kept, []
        reference = None
        for i in range(search.iterations + 1):
            if i == 0 and self.regularisation is not None:
                both = predict_noise(self.backbone, torch.cat([noised, guess]), t, concatenate([prompt, prompt]))
                reference, noise = both.chunk(2)
            else:
                noise = predict_noise(self.backbone, guess, t, prompt)
            if first <= i < end:
                counted.append(noise)
            if i < search.iterations:
                guess = step.back(x, self._regularised(noise, reference, generators) if i >= first else noise, z)
        return step.back(x, self._regularised(torch.stack(counted).mean(0), reference, generators), z)

    def _regularised(self, noise: Tensor, reference: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        if self.regularisation is None:
            return noise
        assert reference is not None, "the first evaluation of a regularised search has a reference"
        return self.regularisation(noise, reference, generators)

    def _denoise(self, state: RenoiseState, prompt: Prompt) -> tuple[Tensor, ...]:
        """Estimate of x0 after each step."""
        x, estimates = state.latents[0], []
        for (t, s), z in zip(downwards(self.generator.timesteps), (*state.noises, None), strict=True):
            x0 = self.generator.predict_x0(x, prompt, full(t, x))
            step = ancestral_step(self.generator.schedule, t, s)
            x = step.forward(x, implied_noise(self.generator.schedule, x, x0, t), z)
            estimates.append(x0)
        return tuple(estimates)
