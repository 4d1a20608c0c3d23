"""One evaluation of a generator's network on random inputs: how long it takes."""

import time
from typing import Any

import torch

from models.families import family_of


@torch.no_grad()
def evaluation_sec(network: Any) -> float:
    """Seconds that the network takes for one picture, in float32."""
    family = family_of(network)
    latents, prompt = family.random_inputs(network, 1)
    t = torch.ones(1, device=latents.device)
    started = time.perf_counter()
    family.evaluate(network, latents, prompt, t).sum().item()  # waits for a GPU
    return time.perf_counter() - started
