"""Pictures before and after an edit from a text-to-image model: Prompt-to-Prompt from noise, two prompts at a time.

As InstructPix2Pix makes its data (Brooks et al. 2023, section 3.1.2): from the same noise, sharing self-attention for a
random share of the steps, since nobody knows beforehand which share suits an edit.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.pairs.config import SamplingConfig
from data.pairs.proposals import Triplet
from models.backbone import Backbone
from models.ddim import Ddim, matching
from models.prompt_to_prompt import Sharing, Trajectory, sample_pairs
from models.word_alignment import refine_alignment


@dataclass(frozen=True)
class Candidate:
    """A pair that is to be sampled; all that is random about it follows from (seed, triplet, number).

    Args:
        triplet: what it shows.
        number: among the triplet's candidates.
        guidance, self_share: the values that were drawn.
        noise: seed of the latent from which both pictures are sampled.
    """

    triplet: Triplet
    number: int
    guidance: float
    self_share: float
    noise: int


def draw_candidates(triplet: Triplet, config: SamplingConfig, seed: int) -> list[Candidate]:
    """The candidates of a triplet."""
    entropy = [seed, int.from_bytes(hashlib.sha256(triplet.key.encode()).digest()[:8], "little")]
    found = []
    for number in range(config.candidates):
        draw = np.random.default_rng([*entropy, number])
        share = (number + draw.random()) / config.candidates  # stratified, so that few candidates span the range too
        low, high = config.self_share
        found.append(
            Candidate(
                triplet,
                number,
                guidance=float(draw.uniform(*config.guidance)),
                self_share=low + (high - low) * float(share),
                noise=int(draw.integers(2**63)),
            )
        )
    return found


class PairSampler:
    """Samples pairs of pictures.

    Args:
        backbone: Stable Diffusion with all of its parts.
        config: how.

    Raises:
        ValueError: more steps than the backbone has timesteps.
    """

    def __init__(self, backbone: Backbone, config: SamplingConfig) -> None:
        self.backbone = backbone
        self.config = config
        self.ddim = Ddim(backbone.schedule, config.num_steps)
        self._null = backbone.encode_text([""])
        unet = backbone.unet.config
        self._shape = (unet.in_channels, unet.sample_size, unet.sample_size)

    @torch.no_grad()
    def __call__(self, candidates: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] in [-1, 1] before and after the edits."""
        device, text = self.backbone.unet.device, self.backbone.text
        assert text is not None, "the sampler's backbone has text encoders"
        noise = [_noise(candidate.noise, self._shape) for candidate in candidates]
        sources = [candidate.triplet.source for candidate in candidates]
        targets = [candidate.triplet.target for candidate in candidates]
        prompt = self.backbone.encode_text(sources)
        nulls = (matching(self._null, prompt),) * len(self.ddim)
        guidance = torch.tensor([candidate.guidance for candidate in candidates], device=device)
        weight = torch.cat([guidance, guidance]).view(-1, 1, 1, 1)
        latents = sample_pairs(
            self.backbone,
            self.ddim,
            Trajectory(torch.stack(noise).to(device), prompt, nulls),
            self.backbone.encode_text(targets),
            lambda step, null, words: null + weight * (words - null),
            Sharing(self.config.cross_share, tuple(candidate.self_share for candidate in candidates)),
            refine_alignment(text, sources, targets),
        )
        before, after = (self.backbone.decode(x).clamp(-1, 1) for x in latents)
        return before, after


def _noise(seed: int, shape: Sequence[int]) -> Tensor:
    # Drawn on the CPU, so that all devices start alike.
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
