"""The terms of the objective beside the paper's own, each off by default (docs/terms.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from eval.metrics.lpips import Lpips, load_lpips
from models.backbone import Backbone, dtype_of
from models.generator import FewStepGenerator
from models.noise_encoder import NoisePosterior
from models.shapes import Sizes
from models.text import Prompt
from train.methods.turboedit.config import TurboEditConfig, TurboEditObjective
from train.methods.turboedit.gaussianity import moments, spectrum
from train.methods.turboedit.known_noise import KnownNoise, known_noise_error
from train.methods.turboedit.perceptual import crop_distance, feature_distance
from train.methods.turboedit.score import TIMESTEPS, score_error
from train.rng import StepRandom


@dataclass(frozen=True)
class Made:
    """What the loss has made of a micro batch of B samples.

    Args:
        x0: Latents [B, C, h, w].
        x0_hat: Reconstructions of the latents [B, C, h, w].
        noise: Noise of the reconstructions, drawn from the posterior [B, C, h, w].
        posterior: F's Gaussian over that noise.
        prompt: G's prompt.
        captions: Captions; none where only prompts are read.
        sizes: Sizes of the pictures, of which an SDXL is told.
        known: Pictures of known noise, or None.
        of_known: F's Gaussian over that noise, or None.
        rng: Random numbers of the step.
    """

    x0: Tensor
    x0_hat: Tensor
    noise: Tensor
    posterior: NoisePosterior
    prompt: Prompt
    captions: Sequence[str]
    sizes: Sizes
    known: KnownNoise | None
    of_known: NoisePosterior | None
    rng: StepRandom


class Term(Protocol):
    """A term of the objective: a number for each sample, of whose mean it adds `weight` times."""

    @property
    def weight(self) -> float:
        """Weight of the mean; 0 makes a figure of the term."""
        ...

    def __call__(self, made: Made) -> dict[str, Tensor]:
        """Figures [B] by name; the one that is trained on has the term's own."""
        ...


@dataclass(frozen=True)
class Moments:
    """Moments of each picture's mean noise."""

    weight: float

    def __call__(self, made: Made) -> dict[str, Tensor]:
        """See `moments`."""
        return {"moments": moments(made.posterior.mean)}


@dataclass(frozen=True)
class Spectrum:
    """Power spectrum of each picture's mean noise."""

    weight: float

    def __call__(self, made: Made) -> dict[str, Tensor]:
        """See `spectrum`."""
        return {"spectrum": spectrum(made.posterior.mean)}


@dataclass(frozen=True)
class KnownNoiseError:
    """Error of F for noise that is known."""

    weight: float
    kind: Literal["mse", "nll"]

    def __call__(self, made: Made) -> dict[str, Tensor]:
        """See `known_noise_error`; `known_rows` has the mean 1 and says which rows have a figure."""
        assert made.known and made.of_known, "the loss draws known noise where its weight is above 0"
        error = known_noise_error(made.of_known, made.known.noise, self.kind)
        rows = len(made.x0)
        return {
            "known_noise": made.known.spread(error, rows),
            "known_rows": made.known.spread(torch.ones_like(error), rows),
        }


@dataclass(frozen=True)
class FeatureDistance:
    """Distance of the reconstruction in features of G's own encoder, at the cleanest timestep that G knows."""

    weight: float
    generator: FewStepGenerator

    def __call__(self, made: Made) -> dict[str, Tensor]:
        """See `feature_distance`."""
        x0, noise = made.x0, made.rng.normal("perceptual", made.x0.shape[1:])
        t = torch.full((len(x0),), self.generator.timesteps[-1], device=x0.device)
        backbone = self.generator.backbone
        return {"perceptual": feature_distance(backbone, made.x0_hat, x0, made.prompt, t, noise)}


@dataclass(frozen=True)
class CropDistance:
    """LPIPS of decoded crops of the reconstruction."""

    weight: float
    backbone: Backbone
    lpips: Lpips

    def __call__(self, made: Made) -> dict[str, Tensor]:
        """See `crop_distance`."""
        return {"perceptual": crop_distance(self.backbone, self.lpips, made.x0_hat, made.x0, made.rng)}


@dataclass(frozen=True)
class ScoreError:
    """Error of the noise in the eyes of a many-step teacher."""

    weight: float
    teacher: Backbone

    def __call__(self, made: Made) -> dict[str, Tensor]:
        """See `score_error`."""
        first, last = TIMESTEPS
        t = (made.rng.integers("score", last - first + 1) + first).to(made.x0.device, non_blocking=True)
        prompt = self.teacher.encode_text(made.captions, made.sizes)
        return {"score": score_error(self.teacher, made.x0, made.noise, prompt, t)}


@dataclass(frozen=True)
class TermNetworks:
    """Frozen networks of the terms, beside the generator.

    Args:
        teacher: Many-step teacher with its UNet and text encoders, or None.
        lpips: LPIPS, or None.
    """

    teacher: Backbone | None = None
    lpips: Lpips | None = None


def load_term_networks(config: TurboEditConfig, device: torch.device | str) -> TermNetworks:
    """The networks that an objective needs, on `device`.

    Raises:
        ValueError: files are missing, or hold something else, or the teacher has another VAE than the generator.
    """
    objective, teacher, lpips = config.objective, None, None
    if objective.score_weight:
        assert objective.score_teacher, "checked by the config"
        check_teacher(objective.score_teacher, config.generator.path)
        dtype = dtype_of(config.generator.dtype)
        teacher = Backbone.load(objective.score_teacher, device=device, dtype=dtype, parts=("network", "text"))
        if teacher.schedule.kind != "variance_preserving":
            raise ValueError(
                f"objective.score_teacher {objective.score_teacher} is a {teacher.schedule.kind}; expected a model of "
                "noise levels 0..999, such as Stable Diffusion's; set objective.score_weight 0 to leave the term out"
            )
    if objective.perceptual_weight and objective.perceptual == "lpips":
        assert objective.perceptual_network, "checked by the config"
        lpips, _ = load_lpips("vgg", Path(objective.perceptual_network), device)
    return TermNetworks(teacher, lpips)


def check_teacher(teacher: str, generator: str) -> None:
    """Refuse a teacher whose latents are of another kind than the generator's, by the settings of both VAEs.

    Raises:
        ValueError: a setting differs.
    """
    ours, theirs = (AutoencoderKL.load_config(path, subfolder="vae") for path in (generator, teacher))
    for name in ("latent_channels", "scaling_factor", "shift_factor"):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"the VAE of objective.score_teacher {teacher} has a {name} of {theirs.get(name)}, that of "
                f"generator.path {generator} {ours.get(name)}: take a teacher of the same latents"
            )


def build_terms(objective: TurboEditObjective, generator: FewStepGenerator, networks: TermNetworks) -> dict[str, Term]:
    """The terms by name: those that an objective has, and those that are figures even when they weigh nothing."""
    terms: dict[str, Term] = {
        "moments": Moments(objective.moments_weight),
        "spectrum": Spectrum(objective.spectrum_weight),
    }
    if objective.known_noise_weight:
        terms["known_noise"] = KnownNoiseError(objective.known_noise_weight, objective.known_noise_loss)
    if objective.perceptual_weight and networks.lpips:
        terms["perceptual"] = CropDistance(objective.perceptual_weight, generator.backbone, networks.lpips)
    elif objective.perceptual_weight:
        _ = generator.backbone.unet  # whose features these are; says so where there is none
        terms["perceptual"] = FeatureDistance(objective.perceptual_weight, generator)
    if networks.teacher:
        terms["score"] = ScoreError(objective.score_weight, networks.teacher)
    return terms
