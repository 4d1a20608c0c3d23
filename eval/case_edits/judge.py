"""Judging edits of pictures without a scene: by what needs no truth, and by PSNR inside the mask where there is one.

The measures stand at the head of eval.scene_edits.judge; all compare with the VAE's round trip of the source, which no
editor on these latents can be better than.
"""

import math
from typing import Any

import torch
from torch import Tensor

from eval.editors.few_steps import decode_latents
from eval.metrics.networks import MetricModels
from eval.metrics.pixels import masked_psnr, psnr
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import EditScores, References
from models.backbone import Backbone

WITHOUT_TRUTH = (
    "Not measured is whether an edit happened and which attributes it keeps (changed, kept), as only those of scenes "
    "are known."
)
"""What no picture without a scene has."""


class CaseJudge:
    """Compares edited pictures with their sources and with their prompts.

    Args:
        models: Networks of the metrics; what needs one that is not there is nan.
        batch: Pictures at a time.
    """

    keeping: tuple[str, ...] = ("psnr_outside", "lpips_outside")
    going: tuple[str, ...] = ("direction", "clip")

    def __init__(self, models: MetricModels, batch: int) -> None:
        self.models = models
        self.batch = batch
        self.clip = models.clip
        self.structure = models.structures.get("corrected")

    @property
    def settings(self) -> list[Any]:
        """Words on the networks, with their fingerprints."""
        return [self.models.about.get(name) for name in ("lpips", "structure", "clip")]

    @torch.no_grad()
    def references(self, edits: EditSet, backbone: Backbone) -> References:
        """The VAE's round trips of the sources, and of the true edits where they are known, in batches."""
        parts = list(edits.batches(self.batch))
        sources = torch.cat([decode_latents(backbone, backbone.encode_image(part.sources)) for part in parts])
        truths = edits.truths
        if edits.has_truths:
            truths = torch.cat([decode_latents(backbone, backbone.encode_image(part.truths)) for part in parts])
        captions = before = structures = None
        if self.clip is not None:
            captions, before = self.clip.embed(edits.target_prompts), self.clip.embed(edits.source_prompts)
        if self.structure is not None:
            found = [self.structure.similarity(images) for images in sources.split(self.batch)]
            structures = torch.cat(found)
        return References(sources, truths, ({},) * len(edits), captions, structures, before)

    @torch.no_grad()
    def scores(self, edits: EditSet, references: References, images: Tensor) -> list[EditScores]:
        """The scores of each of the edited `images` [N, 3, H, W]."""
        sources, unknown = references.sources, [math.nan] * len(edits)
        measured = {
            "psnr_inside": masked_psnr(images, references.truths, edits.masks).tolist(),
            "psnr_outside": masked_psnr(images, sources, ~edits.masks).tolist(),
            "psnr_whole": psnr(images, sources).tolist(),
            "clip": unknown,
            "structure": unknown,
        }
        if self.models.lpips is not None:
            measured["lpips_outside"] = self._lpips_outside(images, sources, ~edits.masks).tolist()
            measured["lpips_whole"] = self.models.lpips(images, sources).tolist()
        if self.clip is not None and references.captions is not None and references.source_captions is not None:
            to_target = self.clip.compare(images, references.captions)
            measured["clip"] = to_target.tolist()
            measured["direction"] = (to_target - self.clip.compare(images, references.source_captions)).tolist()
        if self.structure is not None and references.structures is not None:
            measured["structure"] = self.structure.distance(images, references.structures).tolist()
        return [
            EditScores(kind, math.nan, math.nan, math.nan, **{name: values[row] for name, values in measured.items()})
            for row, kind in enumerate(edits.kinds)
        ]

    def _lpips_outside(self, images: Tensor, sources: Tensor, outside: Tensor) -> Tensor:
        """LPIPS [B] averaged over the places outside [B, 1, H, W], the edit's pixels elsewhere being the source's."""
        assert self.models.lpips is not None, "there is an LPIPS"
        distances = self.models.lpips.spatial(images.where(outside, sources), sources)
        return (distances * outside).flatten(1).sum(1) / outside.flatten(1).sum(1)
