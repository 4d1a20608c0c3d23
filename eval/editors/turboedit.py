"""Ours: a trained noise encoder inverts, its noises with another prompt edit; in the settings of the paper."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import require_unet
from eval.harness.fingerprints import network_fingerprint
from models.masks import automatic_kind
from models.options import MASK_THRESHOLD, UNCHANGED, Outside
from models.pictures import from_pictures
from models.turboedit_pipeline import TurboEditPipeline


class TurboEdit:
    """The exported pipeline, as a user calls it.

    Args:
        pipeline: the exported pipeline with its encoder.
        mask: an automatic mask by its name, "auto" for the best one; None lets everything change. A mask in the request
            goes before it.
        threshold: threshold of the automatic mask, as a share of its strongest place.
        name: name in tables.
        num_steps: number of the encoder's timesteps that are used; None for all.
        frozen_steps: number of them in which the edit has the source's attention maps.
        outside: what stands in the end where nothing changed; "reconstruction" is the paper's form.
        align: whether words go from their places in one description to those in the other.

    Attributes:
        last_mask: the places where the last edit could change the picture, [B, 1, h, w] in [0, 1]; None if everywhere.

    Raises:
        ValueError: the encoder was not trained on the timesteps of `num_steps`, or frozen steps or a mask from
            attention are asked for of a generator without a UNet.
    """

    strengths: tuple[float, ...] = (0.7, 1.0, 1.3, 1.7)

    def __init__(
        self,
        pipeline: TurboEditPipeline,
        mask: str | None = None,
        threshold: float = MASK_THRESHOLD,
        name: str = "turboedit",
        num_steps: int | None = None,
        frozen_steps: int = 0,
        outside: Outside = "source",
        align: bool = False,
    ) -> None:
        pipeline.timesteps_of(num_steps)  # refuses at once what no inversion could do
        if frozen_steps:
            require_unet(pipeline.backbone, "freezing of attention")
        if mask == "attention":
            require_unet(pipeline.backbone, "a mask from attention")
        self.pipeline = pipeline
        self.mask = mask
        self.threshold = threshold
        self.name = name
        self.num_steps = num_steps
        self.frozen_steps = frozen_steps
        self.outside = outside
        self.align = align
        self.last_mask: Tensor | None = None
        self.networks = (pipeline.network, pipeline.encoder)
        pipeline.set_progress_bar_config(disable=True)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "encoder": network_fingerprint(self.pipeline.encoder),
            "timesteps": self.pipeline.timesteps,
            "attention_resolution": self.pipeline.config.attention_resolution,
            "mask": automatic_kind(self.mask),
            "threshold": self.threshold,
            "outside": self.outside,
            "unchanged": UNCHANGED if self.outside == "source" else None,
            "num_steps": self.num_steps,
            "frozen_steps": self.frozen_steps,
            "align": self.align,
        }

    @property
    def inversion_settings(self) -> Settings:
        """All that decides an inversion; with a mask from attention it also remembers maps."""
        return {"model": id(self.pipeline), "num_steps": self.num_steps, "attention": self.mask == "attention"}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """Algorithm 1 of the paper: two evaluations a step."""
        inverted = self.pipeline.invert(images, prompts, self.num_steps, attention=self.mask == "attention")
        means = dict(zip(inverted.timesteps, inverted.noises, strict=True))
        draw = torch.Generator().manual_seed(0)  # for statistics only
        drawn = {
            t: mean + sigma * torch.randn(mean.shape, generator=draw).to(mean)
            for (t, mean), sigma in zip(means.items(), inverted.sigmas, strict=True)
        }
        return InvertedImages(tuple(prompts), means, inverted, drawn)

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Algorithm 2 of the paper: one evaluation a step, and one more in each step that is frozen."""
        output = self.pipeline.edit(
            inversion.state,
            request.prompt,
            strength=1.0 if request.strength is None else request.strength,
            mask=self.mask if request.mask is None else request.mask,
            threshold=self.threshold,
            frozen_steps=self.frozen_steps,
            outside=self.outside,
            align=self.align,
        )
        self.last_mask = output.mask
        return from_pictures(output.images).to(self.pipeline.network.device)

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The generator's estimates, which the inversion has made already."""
        return inversion.state.reconstructions


class OwnPixels(TurboEdit):
    """TurboEdit with the picture itself, not what the VAE makes of it, outside of the mask that a request gives."""

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {**super().settings, "pixels": "source"}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """TurboEdit's, with the pictures [B, 3, H, W] kept beside it."""
        found = super().invert(images, prompts)
        return replace(found, state=(found.state, images))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """TurboEdit's where the mask is set; everywhere without one."""
        state, images = inversion.state
        edited = super().edit(replace(inversion, state=state), request)
        if request.mask is None:
            return edited
        return edited.where(request.mask.to(edited.device) > 0.5, images.to(edited))

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The generator's estimates."""
        return super().reconstruct(replace(inversion, state=inversion.state[0]))


def in_papers_form(pipeline: TurboEditPipeline, name: str = "turboedit") -> TurboEdit:
    """The editor as the paper has it, for its claims: what the inversion misses of the picture stays missing."""
    return TurboEdit(pipeline, name=name, outside="reconstruction")
