"""Ablation: automatic masks of all kinds at several thresholds, beside no mask and the true one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor

from data.pages.charts import Series, line_chart
from eval.ablations.bench import OF_EDITS, Ablation, Bench, Setting, Work, difference, edit_strips, strip_columns
from eval.ablations.editors import ClippedMask, CombinedMask, MaskThresholds
from eval.claims.judging import Comparison
from eval.editors.turboedit import TurboEdit
from eval.scene_edits.edit_set import EditSet
from models.options import AUTOMATIC, MASK_THRESHOLD, Automatic, Outside

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
KINDS: tuple[Automatic, ...] = ("prediction", "noise", "attention")
CLIPPED: tuple[Automatic, ...] = ("prediction", "noise")
"""Differences that are scaled as SwiftEdit does too; its own is that of noises."""

SWIFTEDIT_THRESHOLD = 0.5

COMBINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"union": torch.maximum, "product": torch.mul}
"""Masks of two from "prediction" and "attention", both at the default threshold."""

_WITHOUT_ATTENTION = " This generator is a transformer, of which there are no masks from attention."

_SHOWN = (0, 1, 4, 7)
_BLUE, _ORANGE, _TEAL, _GREY = "#0b5fa5", "#e07b1f", "#13a3a3", "#7d8a3c"


def ablate_mask(bench: Bench) -> Ablation:
    """Edits without a mask, with the automatic ones at every threshold, and with the given one in both forms."""
    edits, pipeline = bench.edits, bench.pipeline
    kinds = [kind for kind in KINDS if bench.has_attention or kind != "attention"]
    scaled: dict[str, MaskThresholds] = {kind: MaskThresholds(pipeline, kind) for kind in kinds}
    scaled |= {f"{kind}, clipped": ClippedMask(pipeline, kind) for kind in CLIPPED}
    given = "true mask" if edits.scenes else "given mask"
    works = {
        "none": _plain(bench, "mask-none", "no mask", masked=False),
        **{name: _automatic(bench, name, editor) for name, editor in scaled.items()},
        **({name: _combined(bench, name) for name in COMBINED} if bench.has_attention else {}),
    }
    if edits.bounded.any():
        works["given"] = _plain(bench, "mask-true", given, masked=True)
        works["paper"] = _plain(bench, "mask-paper", f"{given}, paper's form", masked=True, outside="reconstruction")
    found = dict(zip(works, bench.measured("mask", list(works.values())), strict=True))
    usual = {name: MASK_THRESHOLD if name in KINDS else SWIFTEDIT_THRESHOLD for name in scaled}
    at_usual = {name: found[name][THRESHOLDS.index(usual[name])] for name in scaled}
    auto = at_usual[AUTOMATIC["auto"]]
    shown = [*found["none"], *at_usual.values(), *found.get("given", ())]
    return Ablation(
        name="mask",
        title="Automatic masks",
        words=(
            "Edits of all kinds. A place may change where the generator's first estimates under both prompts differ "
            "(prediction), where the noise encoder's first means do (noise), or where the words that differ are "
            "attended to (attention), each by more than a share of the largest. Clipped is SwiftEdit's scaling, by "
            f"more than a share ({SWIFTEDIT_THRESHOLD:g} there) of three times the mean and without smoothing. Union "
            f"and product are those of prediction and attention. The claims are judged at {MASK_THRESHOLD:g} with "
            f"{AUTOMATIC['auto']}, which is the default; the paper takes attention and 0.6. How much of the {given} "
            "is covered, and how much of the rest, is measured after blurring."
        ),
        measures=("covered", "spilt", "area", *OF_EDITS[:-1]),
        settings=tuple(setting for settings in found.values() for setting in settings),
        edits=edits.edits,
        evidence=_evidence(auto, found),
        comparisons=_against_clipped(at_usual),
        charts=tuple(_chart(name, found[name]) for name in scaled),
        columns=strip_columns(edits, [setting.name for setting in shown]),
        strips=edit_strips(edits, _SHOWN, shown),
        kinds=tuple(at_usual.values()) if len(set(edits.kinds)) > 1 else (),
        left_out=tuple(_left_out(bench)),
    )


def _automatic(bench: Bench, name: str, editor: MaskThresholds) -> Work:
    """One automatic mask at every threshold."""

    def measure() -> list[Setting]:
        result = bench.run(editor, bench.edits, bench.references, THRESHOLDS)
        return [
            bench.setting(f"{name} {threshold:g}", result, threshold, _covering(bench.edits, editor.masks[threshold]))
            for threshold in THRESHOLDS
        ]

    decided_by = [bench.edits.digest, THRESHOLDS]
    return Work(f"mask-{name.replace(', ', '-')}", decided_by, len(THRESHOLDS) * len(bench.edits), measure)


def _combined(bench: Bench, name: str) -> Work:
    """Two masks made one."""

    def measure() -> list[Setting]:
        editor = CombinedMask(bench.pipeline, COMBINED[name], name)
        result = bench.run(editor, bench.edits, bench.references)
        return [bench.setting(f"{name} {MASK_THRESHOLD:g}", result, 1.0, _covering(bench.edits, editor.masks))]

    return Work(f"mask-{name}", [bench.edits.digest, MASK_THRESHOLD], len(bench.edits), measure)


def _plain(bench: Bench, piece: str, name: str, masked: bool, outside: Outside = "source") -> Work:
    """No automatic mask."""

    def measure() -> list[Setting]:
        editor = TurboEdit(bench.pipeline, name=name, outside=outside)
        return [bench.setting(name, bench.run(editor, bench.edits, bench.references, with_masks=masked))]

    return Work(piece, [bench.edits.digest], len(bench.edits), measure)


def _covering(edits: EditSet, masks: list[Tensor]) -> dict[str, list[float]]:
    """What soft masks [b, 1, h, w], one batch after another, cover of the given masks and of the rest."""
    soft = torch.cat(masks)
    covered, spilt = coverage(soft, edits.masks.cpu())
    if edits.scenes:
        return {"covered": covered, "spilt": spilt}
    # Of a picture without a mask nobody knows what should be covered.
    known = [share if bounded else math.nan for share, bounded in zip(covered, edits.bounded.tolist(), strict=True)]
    return {"covered": known, "spilt": spilt, "area": soft.mean((1, 2, 3)).tolist()}


def _evidence(auto: Setting, found: Mapping[str, Sequence[Setting]]) -> dict[str, list[Comparison]]:
    evidence = {"mask_keeps": [difference("psnr_outside", auto, found["none"][0])]}
    if "given" in found:
        evidence["mask_drawn"] = [difference("psnr_outside", found["given"][0], auto)]
    return evidence


def _against_clipped(at_usual: Mapping[str, Setting]) -> tuple[Comparison, ...]:
    """The default mask less those with SwiftEdit's scaling, in what both have a figure for."""
    auto = at_usual[AUTOMATIC["auto"]]
    return tuple(
        difference(measure, auto, at_usual[f"{kind}, clipped"])
        for kind in CLIPPED
        for measure in ("covered", "spilt", "changed", "kept", "psnr_outside")
        if auto.measures(measure)
    )


def _left_out(bench: Bench) -> Iterator[str]:
    if not bench.has_attention:
        yield "Masks from attention, and those made of two, need a UNet's attention, which the generator does not have."
    if not bench.edits.bounded.any():
        yield "There is no given mask, as no picture has one; automatic masks are compared by their area alone."


def coverage(masks: Tensor, truths: Tensor) -> tuple[list[float], list[float]]:
    """Share of each true mask that a soft mask covers, and share of the rest; nan where there is none.

    Args:
        masks: [N, 1, h, w] in [0, 1]. truths: bool [N, 1, H, W].
    """
    masks = F.interpolate(masks, truths.shape[-2:], mode="bilinear")
    inside, outside = truths.float(), (~truths).float()
    shares = [(masks * where).flatten(1).sum(1) / where.flatten(1).sum(1) for where in (inside, outside)]
    return shares[0].tolist(), shares[1].tolist()


def _chart(name: str, found: Sequence[Setting]) -> Markup:
    drawings = (
        ("covered", "of the mask covered", _BLUE),
        ("spilt", "of the rest covered", _ORANGE),
        ("area", "of the picture covered", _GREY),
        ("changed", "edits that happened", _TEAL),
    )
    lines = []
    for measure, title, colour in (drawing for drawing in drawings if found[0].measures(drawing[0])):
        shares = [100 * setting.estimate(measure).mean for setting in found]
        points = [(t, share, f"{t:g}: {share:.0f} %") for t, share in zip(THRESHOLDS, shares, strict=True)]
        lines.append(Series(f"{name}: {title}", colour, points))
    return line_chart(lines, "threshold", "%")
