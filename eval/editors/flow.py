"""Methods for rectified flows on the generator's few steps: FlowEdit and RF-Inversion.

Both papers write x_sigma = (1 - sigma) x0 + sigma eps and the velocity eps - x0. A trigonometric flow becomes one after
a division: z = x_t / (a + b) at sigma = b / (a + b).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, downwards, full, level, networks_of
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.schedule import NoiseSchedule
from models.text import Prompt, concatenate


def sigma_of(schedule: NoiseSchedule, t: float) -> float:
    """The level of noise of t on the rectified flow; 0 for CLEAN."""
    a, b = level(schedule, t)
    return b / (a + b)


def velocity(backbone: Backbone, z: Tensor, t: float, prompt: Prompt) -> Tensor:
    """The predicted eps - x0 [B, C, h, w] at z [B, C, h, w] of the rectified flow, t being the schedule's own."""
    a, b = level(backbone.schedule, t)
    x_t, times = (a + b) * z, full(t, z)
    seen, output = backbone.seen(x_t), backbone.predict(x_t, prompt, times)
    return backbone.schedule.predict_noise(seen, output, times) - backbone.schedule.predict_x0(seen, output, times)


def _require_flow(schedule: NoiseSchedule, method: str) -> None:
    if schedule.kind == "variance_preserving":
        raise ValueError(f"{method} is a method for flows; the generator's schedule is variance preserving")


@dataclass(frozen=True)
class FlowEditState:
    """Latents [B, C, h, w] of the images, the keys of their noise and their prompts."""

    latent: Tensor
    keys: tuple[int, ...]
    prompt: Prompt


class FlowEdit:
    """FlowEdit (Kulikov et al. 2024, arXiv 2412.08629, algorithm 1): from image to image without an inversion.

    Strength is n_max, the number of the last steps that are taken. The paper takes 33 of 50 with Stable Diffusion 3 and
    24 of 28 with FLUX, which is nearest to three of four; that is the default. A distilled generator has no guidance.

    Args:
        num_averaged: n_avg, the noises over which each step averages; the paper and its official code take 1.

    Raises:
        ValueError: the generator's schedule is no flow.
    """

    name = "flowedit"

    def __init__(self, generator: FewStepGenerator, num_averaged: int = 1) -> None:
        _require_flow(generator.schedule, "FlowEdit")
        self.generator = generator
        self.backbone = generator.backbone
        self.networks = networks_of(self.backbone)
        self.num_averaged = num_averaged
        self.num_steps = max(1, round(0.75 * len(generator.timesteps)))
        self.strengths = tuple(float(n) for n in range(1, len(generator.timesteps) + 1))

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.generator.timesteps, "num_averaged": self.num_averaged}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents alone."""
        latent = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(latent))
        return InvertedImages(tuple(prompts), {}, FlowEditState(latent, image_keys(images), prompt))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Two evaluations for each step and noise; a strength of 0 leaves the image as it is.

        Raises:
            ValueError: a strength that is no number of steps.
        """
        state: FlowEditState = inversion.state
        steps = downwards(self.generator.timesteps)
        n_max = self.num_steps if request.strength is None else request.strength
        if n_max not in range(len(steps) + 1):
            raise ValueError(f"FlowEdit's strength is {n_max}; expected a number of steps from 0 to {len(steps)}")
        target = self.backbone.encode_text(request.prompt, self.backbone.size_of(state.latent))
        prompts = concatenate([state.prompt, target])
        edited = state.latent
        for start, end in steps[len(steps) - int(n_max) :]:
            draws = range(self.num_averaged)
            found = [self._difference(state, edited, start, prompts, draw, request.seed) for draw in draws]
            drift = torch.stack(found).mean(0)
            sigma, after = (sigma_of(self.generator.schedule, t) for t in (start, end))
            edited = edited + (after - sigma) * drift
        return decode_latents(self.backbone, edited)

    def _difference(
        self, state: FlowEditState, edited: Tensor, t: float, prompts: Prompt, draw: int, seed: int
    ) -> Tensor:
        """V_delta = V(Z_tar, target) - V(Z_src, source) for one noise.

        Z_src = (1 - sigma) X_src + sigma N, and Z_tar = Z_FE + Z_src - X_src (algorithm 1, lines 4 to 6).
        """
        sigma = sigma_of(self.generator.schedule, t)
        noise = image_noise(state.keys, f"flowedit {t} {draw}", seed, state.latent)
        source = (1 - sigma) * state.latent + sigma * noise
        both = velocity(self.backbone, torch.cat([source, edited + source - state.latent]), t, prompts)
        of_source, of_target = both.chunk(2)
        return of_target - of_source


@dataclass(frozen=True)
class RfInversionState:
    """The images' latents and the noise to which they were led, both [B, C, h, w]."""

    latent: Tensor
    noise: Tensor


class RfInversion:
    """RF-Inversion (Rout et al. 2024, arXiv 2410.10792): controlled ODEs from the image to noise and back.

    Inversion has the empty prompt. It asks the generator at the timestep that it goes to, as DDIM inversion does here:
    no few-step generator was trained at sigma 0, where the paper begins. Strength is the share of the steps, the last
    ones, without the controller; gamma, eta and that share (three quarters) are the official code's.

    Args:
        gamma: weight of the controller towards noise.
        eta: weight of the controller towards the image.
        seed: seed of the noise.

    Raises:
        ValueError: the generator's schedule is no flow.
    """

    name = "rf_inversion"
    strengths = (0.25, 0.5, 0.75, 1.0)
    strength_is_share = True

    def __init__(self, generator: FewStepGenerator, gamma: float = 0.5, eta: float = 0.9, seed: int = 0) -> None:
        _require_flow(generator.schedule, "RF-Inversion")
        self.generator = generator
        self.backbone = generator.backbone
        self.networks = networks_of(self.backbone)
        self.gamma = gamma
        self.eta = eta
        self.seed = seed

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.generator.timesteps, "gamma": self.gamma, "eta": self.eta, "seed": self.seed}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """DY = [u(Y) + gamma (u(Y | y_1) - u(Y))] dsigma with u(Y | y_1) = (y_1 - Y) / (1 - sigma) (eq. 8)."""
        latent = y = self.backbone.encode_image(images)
        noise = image_noise(image_keys(images), "rf_inversion", self.seed, latent)
        empty = self.backbone.encode_text([""] * len(latent), self.backbone.size_of(latent))
        for end, start in reversed(downwards(self.generator.timesteps)):
            sigma, after = (sigma_of(self.generator.schedule, t) for t in (start, end))
            towards = (noise - y) / (1 - sigma)
            own = velocity(self.backbone, y, end, empty)
            y = y + (after - sigma) * (own + self.gamma * (towards - own))
        return InvertedImages(tuple(prompts), {self.generator.timesteps[0]: y}, RfInversionState(latent, y))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """DX = [v(X) + eta (v(X | y_0) - v(X))] dt with v(X | y_0) = (y_0 - X) / (1 - t), t = 1 - sigma (eq. 15).

        Raises:
            ValueError: a strength that is no share.
        """
        state: RfInversionState = inversion.state
        strength = 0.75 if request.strength is None else request.strength
        if not 0 <= strength <= 1:
            raise ValueError(f"RF-Inversion's strength is {strength:g}; expected a share of the steps from 0 to 1")
        x, steps = state.noise, downwards(self.generator.timesteps)
        controlled = round((1 - strength) * len(steps))
        prompt = self.backbone.encode_text(request.prompt, self.backbone.size_of(x))
        for step, (start, end) in enumerate(steps):
            sigma, after = (sigma_of(self.generator.schedule, t) for t in (start, end))
            drift = -velocity(self.backbone, x, start, prompt)
            if step < controlled:
                drift = drift + self.eta * ((state.latent - x) / sigma - drift)
            x = x + (sigma - after) * drift
        return decode_latents(self.backbone, x)
