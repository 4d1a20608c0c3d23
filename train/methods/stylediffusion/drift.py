"""How far sampling with a trained mapper leaves the pivots, and what picture it ends with: whole inversions."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eval.metrics.pixels import mse, psnr
from models.ddim import matching
from models.prompt_to_prompt import Trajectory, reconstruct
from models.stylediffusion import GuidedStep, amortised
from train.task import Batch


@dataclass(frozen=True)
class Drift:
    """Whole inversions of B images.

    Args:
        psnr: PSNR of the reconstruction to the VAE's round trip [B], in dB.
        errors: Root mean squared error of the latent after each step to its pivot [n, B].
    """

    psnr: Tensor
    errors: Tensor

    @property
    def growth(self) -> Tensor:
        """Errors after each step as multiples of the error after the first [n, B]."""
        return self.errors / self.errors[0]

    @property
    def figures(self) -> dict[str, Tensor]:
        """Figures of each image by name [B]: how the picture came back, and what the way did to the latent."""
        return {
            "psnr_to_vae": self.psnr,
            "first_error": self.errors[0],
            "last_error": self.errors[-1],
            "growth": self.growth[-1],
        }


@torch.no_grad()
def measure_drift(step: GuidedStep, mapper: nn.Module | None, batch: Batch) -> Drift:
    """Sample images from their noisiest pivots to the end, as `StyleDiffusionPipeline.reconstruct` does.

    Nothing sets a latent back to its pivot on the way (open loop), so what each step leaves undone goes on.

    Args:
        step: Frozen model, DDIM steps and guidance.
        mapper: Trained network, with the weights that are measured; None for DDIM by the text alone.
        batch: Samples with pivots [B, n + 1, 4, h, w], image tokens (`clip`) [B, N, D] and captions.
    """
    backbone, ddim = step.backbone, step.ddim
    pivots: Tensor = batch["pivots"].transpose(0, 1)
    prompt = backbone.encode_text(batch["caption"], backbone.size_of(pivots))
    nulls = (matching(backbone.encode_text([""]), prompt),) * len(ddim)
    values = None if mapper is None else amortised(mapper, batch["clip"], ddim, prompt)
    trajectory = Trajectory(pivots[0], prompt, nulls, values, step.objective.into)
    latents = reconstruct(backbone, ddim, trajectory, step.objective.guidance)
    errors = torch.stack([mse(x, pivot).sqrt() for x, pivot in zip(latents[1:], pivots[1:], strict=True)])
    found, ceiling = (backbone.decode(x).clamp(-1, 1) for x in (latents[-1], pivots[-1]))
    return Drift(psnr(found, ceiling), errors)
