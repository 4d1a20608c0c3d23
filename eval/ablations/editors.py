"""TurboEdit with the ablated setting as its strength, so that images are inverted once; and noises that are watched."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, ReconstructingEditor, Settings, settings_of
from eval.editors.few_steps import has_unet
from eval.editors.turboedit import TurboEdit
from eval.metrics.noise import noise_moments, noise_summary
from models.options import Automatic
from models.turboedit_pipeline import TurboEditPipeline


def frozen_counts(pipeline: TurboEditPipeline) -> range:
    """Numbers of first steps whose attention can be frozen; 0 alone on a transformer."""
    return range(len(pipeline.timesteps) + 1 if has_unet(pipeline.backbone) else 1)


class FrozenAttention(TurboEdit):
    """`strength` is the number of first steps in which the edit has the source's attention (Prompt-to-Prompt).

    `counts` holds all such numbers.
    """

    def __init__(self, pipeline: TurboEditPipeline, name: str) -> None:
        super().__init__(pipeline, name=name, outside="reconstruction")
        self.counts = tuple(map(float, frozen_counts(pipeline)))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Algorithm 2 with that many frozen steps."""
        assert request.strength is not None, "the strength is the number of frozen steps"
        self.frozen_steps = round(request.strength)
        return super().edit(inversion, replace(request, strength=1.0))


class MaskThresholds(TurboEdit):
    """`strength` is the threshold of an automatic mask.

    `masks` holds the soft masks [B, 1, h, w] of all edits so far, by threshold.
    """

    def __init__(self, pipeline: TurboEditPipeline, kind: Automatic) -> None:
        super().__init__(pipeline, kind, name=f"mask from {kind}")
        self.masks: dict[float, list[Tensor]] = {}

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Algorithm 2 with a mask of that threshold."""
        assert request.strength is not None, "the strength is the threshold"
        self.threshold = request.strength
        pictures = super().edit(inversion, replace(request, strength=1.0))
        assert self.last_mask is not None, "an edit with an automatic mask says where it was"
        self.masks.setdefault(self.threshold, []).append(self.last_mask.float().cpu())
        return pictures


class ClippedMask(MaskThresholds):
    """Masks from the same differences as the automatic ones, scaled as SwiftEdit does (Nguyen et al. 2025)."""

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Algorithm 2 twice: for the difference under both prompts, and with the mask of that threshold."""
        assert request.strength is not None, "the strength is the threshold"
        source = inversion.state
        edited = self.pipeline.edit(source, request.prompt, output_type="latent").inversion
        if self.mask == "prediction":
            assert edited.first is not None, "an edit keeps its first estimate"
            difference = edited.first - source.reconstructions[0]
        else:
            difference = self.pipeline.noise_difference(source, edited.prompt)
        return super().edit(inversion, replace(request, mask=clipped_mask(difference, request.strength)))


def clipped_mask(difference: Tensor, threshold: float) -> Tensor:
    """Binary mask [B, 1, h, w] of a difference [B, C, h, w], as a share of three times its mean, where it is clipped.

    Absolute values are averaged over channels and not smoothed. SwiftEdit's threshold is 0.5.
    """
    heat = difference.float().abs().mean(1, keepdim=True)
    return (heat > threshold * 3 * heat.mean((2, 3), keepdim=True)).float()


class CombinedMask(TurboEdit):
    """Masks from predictions and from attention, both at the default threshold, made one by `combine`.

    `masks` holds the soft masks [B, 1, h, w] of all edits so far.
    """

    def __init__(self, pipeline: TurboEditPipeline, combine: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
        super().__init__(pipeline, "attention", name=f"{name} of masks")
        self.combine = combine
        self.masks: list[Tensor] = []

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Algorithm 2 three times: for each of both masks, and with what they give together."""
        sharp = {"threshold": self.threshold, "blur": 0.0, "output_type": "latent"}
        first, second = (
            self.pipeline.edit(inversion.state, request.prompt, mask=kind, **sharp).mask
            for kind in ("prediction", "attention")
        )
        pictures = super().edit(inversion, replace(request, mask=self.combine(first, second)))
        assert self.last_mask is not None, "an edit with a mask says where it was"
        self.masks.append(self.last_mask.float().cpu())
        return pictures


class WatchedNoise:
    """An editor whose noises are looked at; `health` holds figures of each inverted image's.

    Noises are draws from the distributions that an editor gives, or else the noises themselves. largest: the largest
    |noise|; std, kurtosis and lag1: those of `noise_summary`, over all timesteps together; noisiest_std and
    noisiest_lag1: those of the noisiest timestep alone.
    """

    def __init__(self, editor: ReconstructingEditor, name: str) -> None:
        self.editor = editor
        self.name = name
        self.networks = editor.networks
        self.strengths = editor.strengths
        self.health: dict[str, list[float]] = {}

    @property
    def settings(self) -> Settings:
        """The settings of the watched editor."""
        return settings_of(self.editor)

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The editor's inversion."""
        inversion = self.editor.invert(images, prompts)
        noises = list((inversion.aggregate or inversion.noises).values())
        together, noisiest = _health(torch.cat(noises, 1)), _health(noises[0])
        for name in ("largest", "std", "kurtosis", "lag1"):
            self.health.setdefault(name, []).extend(together[name])
        for name in ("std", "lag1"):
            self.health.setdefault(f"noisiest_{name}", []).extend(noisiest[name])
        return inversion

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The editor's edit."""
        return self.editor.edit(inversion, request)

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The editor's reconstructions."""
        return self.editor.reconstruct(inversion)


def _health(noises: Tensor) -> dict[str, list[float]]:
    """Figures of each sample of `noises` [B, C, h, w]."""
    moments = {name: values.tolist() for name, values in noise_moments(noises).items()}
    samples = [noise_summary({name: values[index] for name, values in moments.items()}) for index in range(len(noises))]
    figures = {name: [sample[name] for sample in samples] for name in ("std", "kurtosis", "lag1")}
    return {"largest": noises.abs().amax((1, 2, 3)).tolist(), **figures}
