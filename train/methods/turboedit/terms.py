"""The terms of the objective beside the paper's own, each off by default (docs/terms.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from models.noise_encoder import NoisePosterior
from models.shapes import Sizes
from models.text import Prompt
from train.methods.turboedit.config import TurboEditObjective
from train.methods.turboedit.gaussianity import moments, spectrum
from train.methods.turboedit.known_noise import KnownNoise, known_noise_error
from train.rng import StepRandom


@dataclass(frozen=True)
class Made:
    """What the loss has made of a micro batch of B samples.

    Args:
        x0: Latents [B, C, h, w].
        x0_hat: Their reconstructions [B, C, h, w].
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

    weight: float

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


def build_terms(objective: TurboEditObjective) -> dict[str, Term]:
    """The terms by name: those that an objective has, and those that are figures even when they weigh nothing."""
    terms: dict[str, Term] = {
        "moments": Moments(objective.moments_weight),
        "spectrum": Spectrum(objective.spectrum_weight),
    }
    if objective.known_noise_weight:
        terms["known_noise"] = KnownNoiseError(objective.known_noise_weight, objective.known_noise_loss)
    return terms
