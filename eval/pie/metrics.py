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

On request (metrics.further) also, as the official code names them psnr, psnr_edit_part and so on:

psnr_whole, mse_whole, ssim_whole, lpips_whole    of whole pictures, in both forms
psnr_edit, mse_edit, ssim_edit, lpips_edit        as those of the background, with mask and background exchanged
structure_background, structure_edit              of pictures that are black elsewhere; in the published form alone
clip_direction                                    see eval.metrics.clip, in both forms; 0 where nothing changed

For the corrected SSIM and LPIPS the edit's pixels in the mask are first replaced by the source's, as windows and
receptive fields reach over the mask's border: an edit that keeps the background has a corrected PSNR of 100, MSE 0,
SSIM 1 and LPIPS 0 whatever it does in the mask. Where nothing differs, PSNR is infinite; 100 dB stand for it in both
forms, and results say of how many cases; finite values above stay. psnr, mse, ssim and lpips are nan without a
background (the official code writes "nan"), clip_edited without a mask. SSIM is that of torchmetrics until 2024 (the
published tables are older): windows that reach over the frame do not count; with metrics.libraries "today" they do in
the published form, and pictures for its structure distance are resized with antialiasing, which is the official code
with torchmetrics and torchvision from 2024 on. The square of clip_edited has the longer side of the box (at most the
frame's shorter side) and is moved into the frame.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.metrics.clip import ClipSimilarity, clip_direction, clip_score
from eval.metrics.measures import PIE_FURTHER, PIE_MEASURES, SECOND_CLIP
from eval.metrics.networks import MetricModels
from eval.metrics.pixels import EDGE, MAX_PSNR, reflected, ssim_map
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
        texts: what the CLIPs say of pictures and prompts, by the beginning of their measures' names.
        parts: self-similarities of the background and of the edited part [B, N, N], where they are measured.
    """

    pictures: Tensor
    masks: Tensor
    squares: Tensor
    similarities: Mapping[str, Tensor]
    texts: Mapping[str, "SourceTexts"]
    parts: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: slice | Sequence[int]) -> "SourceFeatures":
        """The features of some of the sources."""
        return SourceFeatures(
            self.pictures[rows],
            self.masks[rows],
            self.squares[rows],
            {form: found[rows] for form, found in self.similarities.items()},
            {name: found[rows] for name, found in self.texts.items()},
            {name: found[rows] for name, found in self.parts.items()},
        )


@dataclass(frozen=True)
class SourceTexts:
    """What one CLIP says of B sources: embeddings [B, P] of pictures and prompts, and the similarity of both [B]."""

    pictures: Tensor
    source_prompts: Tensor
    target_prompts: Tensor
    score: Tensor

    def __getitem__(self, rows: slice | Sequence[int]) -> "SourceTexts":
        """The texts of some of the sources."""
        return SourceTexts(
            *(found[rows] for found in (self.pictures, self.source_prompts, self.target_prompts, self.score))
        )


class PieMetrics:
    """The measures of edits, in batches; what depends on the source alone is computed once for all editors.

    Args:
        models: the learned networks. Measures whose network is not there are left out, as `models.about` says.
    """

    def __init__(self, models: MetricModels) -> None:
        self.models = models
        self.about = dict(models.about)
        self.clips = {"clip": models.clip, "second_clip": models.second_clip}
        further = [measure.name for measure in PIE_FURTHER]
        wanted = [*PIE_MEASURES, *further, *(measure.name for measure in SECOND_CLIP)]
        self.measures = tuple(name for name in wanted if self._measured(name, further))
        """Names of the measures that are not left out."""

    def _measured(self, name: str, further: Sequence[str]) -> bool:
        """Whether a measure was asked for and its network is there."""
        if (name in further or name.endswith("direction")) and not self.models.further:
            return False
        if name.startswith("structure"):
            return bool(self.models.structures)
        if name.startswith("lpips"):
            return self.models.lpips is not None
        begins = name.rpartition("_")[0]
        return begins not in self.clips or self.clips[begins] is not None

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
        with _full_precision():
            texts = {
                name: _source_texts(clip, pictures, source_prompts, target_prompts) for name, clip in self._there()
            }
            similarities, parts = self._similarities(pictures), self._part_similarities(pictures, masks)
            return SourceFeatures(pictures, masks, _squares(masks), similarities, texts, parts)

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
            for name, texts in sources.texts.items():
                values = self._whole_texts(name, texts, sources, edits)
                for columns in found.values():
                    columns |= values
            for form, similarity in self._similarities(edits).items():
                found[form]["structure"] = similarity_distance(similarity, sources.similarities[form])
            if self.models.further:
                self._add_further(found, sources, edits)
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
        found = self._blackened(sources.pictures, edits, ~masks)
        for name, clip in self._there():
            scores = clip.score(edits * masks, sources.texts[name].target_prompts)
            found[f"{name}_edited"] = scores.where(masks.flatten(1).any(1), torch.nan)
        return found

    def _corrected(self, sources: SourceFeatures, edits: Tensor) -> dict[str, Tensor]:
        """Measures of the background alone, and of the square around the mask."""
        found = self._inside(sources.pictures, edits, ~sources.masks)
        for name, clip in self._there():
            boxes = [(top, left, side or 1) for top, left, side in sources.squares.tolist()]
            squares = [
                edit[:, top : top + side, left : left + side]
                for edit, (top, left, side) in zip(edits, boxes, strict=True)
            ]
            scores = clip.score(squares, sources.texts[name].target_prompts)
            found[f"{name}_edited"] = scores.where(sources.squares[:, 2].to(scores.device) > 0, torch.nan)
        return found

    def _blackened(self, before: Tensor, after: Tensor, keep: Tensor) -> dict[str, Tensor]:
        """Closeness of pictures that are black outside of `keep` [B, 1, H, W], over the frame; nan for an empty one."""
        before, after = before * keep, after * keep
        error = _squared_error(before, after) / before[0].numel()
        found = {"mse": error, "psnr": _decibels(error)}
        found["ssim"] = (_reflected_ssim if self.models.today else _frame_ssim)(before, after)
        if self.models.lpips is not None:
            found["lpips"] = self.models.lpips(_images(before), _images(after))
        return {name: values.where(keep.flatten(1).any(1), torch.nan) for name, values in found.items()}

    def _inside(self, before: Tensor, after: Tensor, keep: Tensor) -> dict[str, Tensor]:
        """Closeness of the pixels in `keep` [B, 1, H, W] alone; nan for an empty one."""
        after = after.where(keep, before)
        error = _squared_error(before, after) / (3 * keep.flatten(1).sum(1))
        found = {"mse": error, "psnr": _decibels(error), "ssim": _mean_ssim(before, after, keep)}
        if self.models.lpips is not None:
            found["lpips"] = _mean_where(self.models.lpips.spatial(_images(before), _images(after)), keep)
        return found

    def _add_further(self, found: BatchValues, sources: SourceFeatures, edits: Tensor) -> None:
        """Add what metrics.further asks for: of whole pictures and of the edited part."""
        whole = torch.ones_like(sources.masks)
        places = {
            "published": (self._blackened, _with_border(sources.masks)),
            "corrected": (self._inside, sources.masks),
        }
        for form, (closeness, inside) in places.items():
            for part, keep in (("whole", whole), ("edit", inside)):
                values = closeness(sources.pictures, edits, keep)
                found[form] |= {f"{name}_{part}": column for name, column in values.items()}
        for name, similarity in self._part_similarities(edits, sources.masks).items():
            distances = similarity_distance(similarity, sources.parts[name])
            there = _parts(sources.masks)[name].flatten(1).any(1)
            found["published"][name] = distances.where(there, torch.nan)
            found["corrected"][name] = torch.full_like(distances, torch.nan)

    def _whole_texts(self, name: str, texts: SourceTexts, sources: SourceFeatures, edits: Tensor) -> dict[str, Tensor]:
        """Similarities of whole edits by one CLIP, the same in both forms."""
        clip = self.clips[name]
        assert clip is not None
        pictures = clip.embed_pictures(edits)
        found = {f"{name}_whole": clip_score(pictures, texts.target_prompts), f"{name}_source": texts.score}
        if self.models.further:
            direction = clip_direction(texts.pictures, pictures, texts.source_prompts, texts.target_prompts)
            changed = (edits != sources.pictures).flatten(1).any(1)
            found[f"{name}_direction"] = direction.where(changed | direction.isnan(), 0.0)
        return found

    def _there(self) -> list[tuple[str, ClipSimilarity]]:
        """The CLIPs that there are."""
        return [(name, clip) for name, clip in self.clips.items() if clip is not None]

    def _part_similarities(self, pictures: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Self-similarities of the background and of the edited part, where they are wanted."""
        structure = self.models.structures.get("published") if self.models.further else None
        if structure is None:
            return {}
        return {name: structure.similarity(_images(pictures * keep)) for name, keep in _parts(masks).items()}

    def _similarities(self, pictures: Tensor) -> dict[str, Tensor]:
        """Self-similarities by form; computed once where both forms are the same."""
        structures = self.models.structures
        found = {structure: structure.similarity(_images(pictures)) for structure in set(structures.values())}
        return {form: found[structure] for form, structure in structures.items()}


def _source_texts(
    clip: ClipSimilarity, pictures: Tensor, source_prompts: Sequence[str], target_prompts: Sequence[str]
) -> SourceTexts:
    shown, sources, targets = clip.embed_pictures(pictures), clip.embed(source_prompts), clip.embed(target_prompts)
    return SourceTexts(shown, sources, targets, clip_score(shown, sources))


def _parts(masks: Tensor) -> dict[str, Tensor]:
    """Where the pictures are looked at for the structure distances of their parts, in the published form."""
    masks = _with_border(masks)
    return {"structure_background": ~masks, "structure_edit": masks}


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
    """Mean squared error in [0, 1] as PSNR, MAX_PSNR where there is none; nan stays nan."""
    return (-10 * torch.log10(error)).masked_fill(error == 0, MAX_PSNR)


def _frame_ssim(before: Tensor, after: Tensor) -> Tensor:
    """Mean SSIM [B] of pictures uint8 [B, 3, H, W] over all windows within the frame."""
    return _mean_ssim(before, after, torch.ones_like(before[:, :1], dtype=torch.bool))


def _reflected_ssim(before: Tensor, after: Tensor) -> Tensor:
    """Mean SSIM [B] of pictures uint8 [B, 3, H, W] over windows at every pixel, as torchmetrics has it today."""
    pairs = zip((before / _WHITE).split(1), (after / _WHITE).split(1), strict=True)
    means = [ssim_map(reflected(exact(a)), reflected(exact(b))).mean((1, 2, 3)) for a, b in pairs]
    return _on(before.device, torch.cat(means))


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
