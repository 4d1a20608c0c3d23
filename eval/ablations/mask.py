"""Ablation: automatic masks of all kinds at several thresholds, beside no mask and the true one."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor

from data.pages.charts import Series, line_chart
from eval.ablations.bench import Ablation, Bench, Setting, Work, difference, edit_strips, strip_columns
from eval.ablations.editors import ClippedMask, CombinedMask, MaskThresholds
from eval.editors.few_steps import has_unet
from eval.editors.turboedit import TurboEdit
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
_BLUE, _ORANGE, _TEAL = "#0b5fa5", "#e07b1f", "#13a3a3"


def ablate_mask(bench: Bench) -> Ablation:
    """Edits without a mask, with the automatic ones at every threshold, and with the true one in both forms.

    On a transformer there are none from attention.
    """
    edits, references, pipeline = bench.edits, bench.references, bench.pipeline
    attends = has_unet(pipeline.backbone)
    kinds = [kind for kind in KINDS if attends or kind != "attention"]
    joint = list(COMBINED) if attends else []

    def automatic(name: str, editor: MaskThresholds) -> list[Setting]:
        result = bench.run(editor, edits, references, THRESHOLDS)
        return [
            bench.setting(f"{name} {threshold:g}", result, threshold, covering(editor.masks[threshold]))
            for threshold in THRESHOLDS
        ]

    def combined(name: str) -> list[Setting]:
        editor = CombinedMask(pipeline, COMBINED[name], name)
        result = bench.run(editor, edits, references)
        return [bench.setting(f"{name} {MASK_THRESHOLD:g}", result, 1.0, covering(editor.masks))]

    def plain(name: str, masked: bool, outside: Outside = "source") -> list[Setting]:
        editor = TurboEdit(pipeline, name=name, outside=outside)
        return [bench.setting(name, bench.run(editor, edits, references, with_masks=masked))]

    def covering(masks: list[Tensor]) -> dict[str, list[float]]:
        covered, spilt = coverage(torch.cat(masks), edits.masks.cpu())
        return {"covered": covered, "spilt": spilt}

    count = len(edits)
    scaled: dict[str, MaskThresholds] = {kind: MaskThresholds(pipeline, kind) for kind in kinds}
    scaled |= {f"{kind}, clipped": ClippedMask(pipeline, kind) for kind in CLIPPED}
    works = [
        Work("mask-none", [edits.digest], count, lambda: plain("no mask", False)),
        *(
            Work(
                f"mask-{name.replace(', ', '-')}",
                [edits.digest, THRESHOLDS],
                len(THRESHOLDS) * count,
                partial(automatic, name, editor),
            )
            for name, editor in scaled.items()
        ),
        *(Work(f"mask-{name}", [edits.digest, MASK_THRESHOLD], count, partial(combined, name)) for name in joint),
        Work("mask-true", [edits.digest], count, lambda: plain("true mask", True)),
        Work("mask-paper", [edits.digest], count, lambda: plain("true mask, paper's form", True, "reconstruction")),
    ]
    (none,), *masked, (true,), (paper,) = bench.measured("mask", works)
    by_name = dict(zip(scaled, masked, strict=False))
    usual = {name: MASK_THRESHOLD if name in KINDS else SWIFTEDIT_THRESHOLD for name in scaled}
    at_usual = {name: found[THRESHOLDS.index(usual[name])] for name, found in by_name.items()}
    auto = at_usual[AUTOMATIC["auto"]]
    settings = (none, *(setting for found in masked for setting in found), true, paper)
    shown = [none, *at_usual.values(), true]
    return Ablation(
        name="mask",
        title="Automatic masks",
        words=(
            "Edits of all kinds. A place may change where the generator's first estimates under both prompts differ "
            "(prediction), where the noise encoder's first means do (noise), or where the words that differ are "
            "attended to (attention), each by more than a share of the largest. Clipped is SwiftEdit's scaling, by "
            f"more than a share ({SWIFTEDIT_THRESHOLD:g} there) of three times the mean and without smoothing. Union "
            f"and product are those of prediction and attention. The claims are judged at {MASK_THRESHOLD:g} with "
            f"{AUTOMATIC['auto']}, which is the default; the paper takes attention and 0.6. How much of the true mask "
            f"is covered, and how much of the rest, is measured after blurring.{'' if attends else _WITHOUT_ATTENTION}"
        ),
        measures=("covered", "spilt", "changed", "kept", "psnr_outside", "psnr_inside"),
        settings=settings,
        edits=edits.edits,
        evidence={
            "mask_keeps": [difference("psnr_outside", auto, none)],
            "mask_drawn": [difference("psnr_outside", true, auto)],
        },
        comparisons=tuple(
            difference(measure, auto, at_usual[f"{kind}, clipped"])
            for kind in CLIPPED
            for measure in ("covered", "spilt", "changed", "kept", "psnr_outside")
        ),
        charts=tuple(_chart(name, found) for name, found in by_name.items()),
        columns=strip_columns(shown),
        strips=edit_strips(edits, _SHOWN, shown),
        kinds=tuple(shown[1:-1]),
    )


def coverage(masks: Tensor, truths: Tensor) -> tuple[list[float], list[float]]:
    """Share of each true mask that a soft mask covers, and share of the rest; nan where there is none.

    Args:
        masks: [N, 1, h, w] in [0, 1]. truths: bool [N, 1, H, W].
    """
    masks = F.interpolate(masks, truths.shape[-2:], mode="bilinear")
    inside, outside = truths.float(), (~truths).float()
    shares = [(masks * where).flatten(1).sum(1) / where.flatten(1).sum(1) for where in (inside, outside)]
    return shares[0].tolist(), shares[1].tolist()


def _chart(name: str, found: tuple[Setting, ...]) -> Markup:
    drawings = (
        ("covered", "of the true mask covered", _BLUE),
        ("spilt", "of the rest covered", _ORANGE),
        ("changed", "edits that happened", _TEAL),
    )
    lines = []
    for measure, title, colour in drawings:
        shares = [100 * setting.estimate(measure).mean for setting in found]
        points = [(t, share, f"{t:g}: {share:.0f} %") for t, share in zip(THRESHOLDS, shares, strict=True)]
        lines.append(Series(f"{name}: {title}", colour, points))
    return line_chart(lines, "threshold", "%")
