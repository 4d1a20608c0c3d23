"""Gradient checkpointing and compilation of any network: they change its memory and time, and not what it computes."""

from typing import Protocol

import torch
from diffusers.models.modeling_utils import ModelMixin


class MemoryOptions(Protocol):
    """The part of a config that names them."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Recompute activations in the backward pass."""

    @property
    def compile(self) -> bool:
        """torch.compile of the transformer blocks."""


def apply_memory_options(network: ModelMixin, config: MemoryOptions) -> None:
    """Turn gradient checkpointing and compilation of a trained or frozen network on where the config does."""
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if config.compile:
        # Dynamic from the start: TurboEdit's simulated reconstructions are another number of rows in every step, and
        # previews another than a micro batch. What is left is a graph for each width and network, with and without
        # gradient, of one row and of more; torch gives up silently beyond 8.
        torch.compiler.config.recompile_limit = 64
        names = getattr(network, "_repeated_blocks", None) or network._no_split_modules  # all classes have these
        for block in (module for module in network.modules() if type(module).__name__ in names):
            block.compile(dynamic=True)
