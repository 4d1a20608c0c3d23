"""PIE-Bench's metrics (Ju et al. 2024) in two forms: as its official code computes them, and corrected.

All compare the edit with the source or with a prompt; none is scaled (tables print structure and LPIPS times 1000, MSE
times 10000, SSIM times 100). The mask is 1 where the edit may change the picture; the background is the rest. Pictures
are compared in [0, 1]. Nan stands where a measure is not defined.

measure      published                                       corrected
             the mask's outermost rows and columns are 1     the mask as annotated
psnr, mse    of the whole frame, with both pictures black    of the background's pixels alone
             in the mask: the larger the mask, the better
ssim         the same pictures, mean over all windows        mean over the windows whose centres are background
             within the frame
lpips        the same pictures, SqueezeNet 1.1               its map, averaged over the background
structure    DINO gets levels of 0 to 255 that are           levels divided by 255, resized with antialiasing
             normalised as if they were in [0, 1], resized
             without antialiasing
clip_edited  the target prompt against the frame, black      against the square around the mask's bounding box
             outside of the mask
clip_whole   the target prompt against the edit, and clip_source the source prompt against the source, in both forms

For the corrected SSIM and LPIPS the edit's pixels in the mask are first replaced by the source's, as windows and
receptive fields reach over the mask's border: an edit that keeps the background has a corrected PSNR of 100, MSE 0,
SSIM 1 and LPIPS 0 whatever it does in the mask. Where nothing differs, PSNR is infinite; 100 dB stand for it in both
forms. psnr, mse, ssim and lpips are nan without a background (the official code writes "nan"), clip_edited without a
mask. SSIM is that of torchmetrics until 2024 (the published tables are older): windows that reach over the frame do not
count. The square of clip_edited has the longer side of the box (at most the frame's shorter side) and is moved into the
frame.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.metrics.measures import PIE_MEASURES
from eval.metrics.networks import MetricModels
from eval.metrics.pixels import EDGE, MAX_PSNR, ssim_map
from eval.metrics.structure import similarity_distance
from models.precision import exact, widest

FORMS = ("published", "corrected")

TRUTH_MEASURES = ("psnr", "psnr_inside", "ssim", "lpips")
"""Measures of an edit against the true one, where that is known: of the whole picture, and inside the mask alone."""

BatchValues = dict[str, dict[str, Tensor]]
"""form -> measure -> [B], float64 on the CPU."""

_WHITE = 255


@dataclass(frozen=True)
class SourceFeatures:
    """B sources and what all edits of them are compared with.

    Args:
        pictures: uint8 [B, 3, H, W].
        masks: bool [B, 1, H, W], as annotated.
        squares: around the masks' bounding boxes: top, left and side [B, 3] on the CPU; side 0 for an empty mask.
        similarities: self-similarities of keys [B, N, N] by form; empty where the structure distance is left out.
        target_texts: embeddings of the target prompts [B, P], or None without a CLIP.
        clip_source: similarity of pictures and source prompts [B], or None without a CLIP.
    """

    pictures: Tensor
    masks: Tensor
    squares: Tensor
    similarities: Mapping[str, Tensor]
    target_texts: Tensor | None
    clip_source: Tensor | None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: slice | Sequence[int]) -> "SourceFeatures":
        """The features of some of the sources."""
        return SourceFeatures(
            self.pictures[rows],
            self.masks[rows],
            self.squares[rows],
            {form: found[rows] for form, found in self.similarities.items()},
            None if self.target_texts is None else self.target_texts[rows],
            None if self.clip_source is None else self.clip_source[rows],
        )


class PieMetrics:
    """The measures of edits, in batches; what depends on the source alone is computed once for all editors.

    Args:
        models: the learned networks. Measures whose network is not there are left out, as `models.about` says.
    """

    def __init__(self, models: MetricModels) -> None:
        self.models = models
        self.about = dict(models.about)
        without = {"structure": not models.structures, "lpips": models.lpips is None}
        without |= dict.fromkeys(("clip_whole", "clip_edited", "clip_source"), models.clip is None)
        self.measures = tuple(name for name in PIE_MEASURES if not without.get(name))
        """Names of the measures that are not left out."""

    @torch.no_grad()
    def sources(
        self, pictures: Tensor, masks: Tensor, source_prompts: Sequence[str], target_prompts: Sequence[str]
    ) -> SourceFeatures:
        """Compute what all edits of B sources share.

        Args:
            pictures: uint8 [B, 3, H, W].
            masks: bool [B, 1, H, W], as annotated: 1 where the edit may change the picture.

        Raises:
            ValueError: shapes, types or numbers that do not fit.
        """
        batch, _, height, width = pictures.shape
        _expect("pictures", pictures, torch.uint8, (batch, 3, height, width))
        _expect("masks", masks, torch.bool, (batch, 1, height, width))
        if not len(source_prompts) == len(target_prompts) == batch:
            numbers = f"{len(source_prompts)} source prompts and {len(target_prompts)} target prompts"
            raise ValueError(f"there are {numbers}, expected {batch} of both, one for each picture")
        pictures, masks = pictures.to(self.models.device), masks.to(self.models.device)
        texts = scores = None
        with _full_precision():
            if (clip := self.models.clip) is not None:
                texts = clip.embed(target_prompts)
                scores = clip.score(pictures, clip.embed(source_prompts))
            return SourceFeatures(pictures, masks, _squares(masks), self._similarities(pictures), texts, scores)

    @torch.no_grad()
    def measure(self, sources: SourceFeatures, edits: Tensor) -> BatchValues:
        """The measures of one edit, uint8 [B, 3, H, W], of each source.

        Raises:
            ValueError: another shape than the sources', or another type.
        """
        _expect("edits", edits, torch.uint8, tuple(sources.pictures.shape))
        edits = edits.to(self.models.device)
        with _full_precision():
            found = {"published": self._published(sources, edits), "corrected": self._corrected(sources, edits)}
            if self.models.clip is not None and sources.target_texts is not None and sources.clip_source is not None:
                whole = self.models.clip.score(edits, sources.target_texts)
                for values in found.values():
                    values |= {"clip_whole": whole, "clip_source": sources.clip_source}
            for form, similarity in self._similarities(edits).items():
                found[form]["structure"] = similarity_distance(similarity, sources.similarities[form])
        return {form: {name: values[name].cpu().double() for name in self.measures} for form, values in found.items()}

    @torch.no_grad()
    def to_truth(self, edits: Tensor, truths: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Compare edits with the true ones, all uint8 [B, 3, H, W]: TRUTH_MEASURES [B], float64 on the CPU.

        Args:
            masks: bool [B, 1, H, W]: where `psnr_inside` looks, nan where that is nowhere; the others see all.
        """
        edits, truths, masks = (values.to(self.models.device) for values in (edits, truths, masks))
        _expect("true edits", truths, torch.uint8, tuple(edits.shape))
        inside = _squared_error(edits * masks, truths * masks) / (3 * masks.flatten(1).sum(1))
        found = {
            "psnr": _decibels(_squared_error(edits, truths) / edits[0].numel()),
            "psnr_inside": _decibels(inside),
            "ssim": _mean_ssim(edits, truths, torch.ones_like(masks)),
        }
        if self.models.lpips is not None:
            with _full_precision():
                found["lpips"] = self.models.lpips(_images(edits), _images(truths))
        return {name: found[name].cpu().double() for name in TRUTH_MEASURES if name in found}

    def _published(self, sources: SourceFeatures, edits: Tensor) -> dict[str, Tensor]:
        """Measures of the official code: of whole pictures that are black where they are not looked at."""
        masks = _with_border(sources.masks)
        keep = ~masks
        empty = ~keep.flatten(1).any(1)
        before, after = sources.pictures * keep, edits * keep
        error = _squared_error(before, after) / before[0].numel()
        found = {"mse": error, "psnr": _decibels(error), "ssim": _mean_ssim(before, after, torch.ones_like(keep))}
        if self.models.lpips is not None:
            found["lpips"] = self.models.lpips(_images(before), _images(after))
        found = {name: values.where(~empty, torch.nan) for name, values in found.items()}
        if self.models.clip is not None and sources.target_texts is not None:
            scores = self.models.clip.score(edits * masks, sources.target_texts)
            found["clip_edited"] = scores.where(masks.flatten(1).any(1), torch.nan)
        return found

    def _corrected(self, sources: SourceFeatures, edits: Tensor) -> dict[str, Tensor]:
        """Measures of the background alone, and of the square around the mask."""
        keep = ~sources.masks
        before, after = sources.pictures, edits.where(keep, sources.pictures)
        error = _squared_error(before, after) / (3 * keep.flatten(1).sum(1))
        found = {"mse": error, "psnr": _decibels(error), "ssim": _mean_ssim(before, after, keep)}
        if self.models.lpips is not None:
            found["lpips"] = _mean_where(self.models.lpips.spatial(_images(before), _images(after)), keep)
        if self.models.clip is not None and sources.target_texts is not None:
            boxes = [(top, left, side or 1) for top, left, side in sources.squares.tolist()]
            squares = [
                edit[:, top : top + side, left : left + side]
                for edit, (top, left, side) in zip(edits, boxes, strict=True)
            ]
            scores = self.models.clip.score(squares, sources.target_texts)
            found["clip_edited"] = scores.where(sources.squares[:, 2].to(scores.device) > 0, torch.nan)
        return found

    def _similarities(self, pictures: Tensor) -> dict[str, Tensor]:
        """Self-similarities by form; computed once where both forms are the same."""
        structures = self.models.structures
        found = {structure: structure.similarity(_images(pictures)) for structure in set(structures.values())}
        return {form: found[structure] for form, structure in structures.items()}


def _expect(name: str, values: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or tuple(values.shape) != shape:
        raise ValueError(f"{name} are {values.dtype} {list(values.shape)}, expected {dtype} {list(shape)}")


def _full_precision() -> AbstractContextManager[None]:
    """Convolutions on CUDA without TF32, whose ten bits of mantissa would show in the fourth digit."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def _images(pictures: Tensor) -> Tensor:
    """[-1, 1] of levels."""
    return pictures / (_WHITE / 2) - 1


def _with_border(masks: Tensor) -> Tensor:
    """Masks with the outermost rows and columns set, against "annotation errors in boundary"."""
    masks = masks.clone()
    for side in (0, -1):
        masks[..., side, :] = True
        masks[..., :, side] = True
    return masks


def _squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Sums of squared differences [B] of pictures uint8 [B, 3, H, W] in units of [0, 1]; exact but for one rounding."""
    return _on(a.device, exact((a.int() - b.int()).square().flatten(1).sum(1)) / _WHITE**2)


def _decibels(error: Tensor) -> Tensor:
    """Mean squared error in [0, 1] as PSNR, at most MAX_PSNR; nan stays nan."""
    return (-10 * torch.log10(error)).clamp(max=MAX_PSNR)


def _mean_ssim(before: Tensor, after: Tensor, keep: Tensor) -> Tensor:
    """Mean SSIM [B] of pictures uint8 [B, 3, H, W] over windows with their centres in `keep` [B, 1, H, W].

    Picture by picture: the maps of a batch in float64 would take gigabytes.
    """
    centres = keep[..., EDGE:-EDGE, EDGE:-EDGE]
    pairs = zip((before / _WHITE).split(1), (after / _WHITE).split(1), centres.split(1), strict=True)
    return torch.cat([_mean_where(ssim_map(a, b).mean(1, keepdim=True), inside) for a, b, inside in pairs])


def _mean_where(values: Tensor, keep: Tensor) -> Tensor:
    """Means [B] of maps [B, 1, H, W] over `keep`; nan where that is empty."""
    values = exact(values)
    inside = keep.to(values.device)
    return _on(keep.device, (values * inside).flatten(1).sum(1) / inside.flatten(1).sum(1))


def _on(device: torch.device, values: Tensor) -> Tensor:
    """Float64 values on a device, in the widest type that it has."""
    return values.to(device, widest(device))


def _squares(masks: Tensor) -> Tensor:
    """Top, left and side of the square around each mask's bounding box; side 0 for an empty mask."""
    height, width = masks.shape[-2:]
    found = torch.zeros(len(masks), 3, dtype=torch.int64)
    for square, mask in zip(found, masks.cpu(), strict=True):
        rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
        if len(rows):
            (top, bottom), (left, right) = ((int(x[0]), int(x[-1]) + 1) for x in (rows, columns))
            side = min(max(bottom - top, right - left), height, width)
            square[:] = torch.tensor([_start(top, bottom, side, height), _start(left, right, side, width), side])
    return found


def _start(first: int, end: int, side: int, length: int) -> int:
    """Start of a stretch of `side` of `length` pixels with the same middle as [first, end), if there is room."""
    return min(max((first + end - side) // 2, 0), length - side)
