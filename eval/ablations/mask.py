"""Ablation: the automatic mask's threshold, beside no mask and the true one."""

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor

from data.pages.charts import Series, line_chart
from data.world.edits import EDIT_KINDS
from eval.ablations.bench import Ablation, Bench, Setting, Work, difference, edit_strips, strip_columns
from eval.ablations.editors import AutomaticMask
from eval.editors.turboedit import MASK_THRESHOLD, TurboEdit

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LOCAL = tuple(kind for kind in EDIT_KINDS if kind not in ("change_background", "change_style"))
"""Kinds of edits that have a place."""

NO_MASK = 0.0
_SHOWN = (0, 1, 2, 5)
_BLUE, _ORANGE, _TEAL = "#0b5fa5", "#e07b1f", "#13a3a3"


def ablate_mask(bench: Bench) -> Ablation:
    """Local edits without a mask, with the automatic one of every threshold, and with the true one."""
    edits, references = bench.of_kinds(LOCAL)
    thresholds = (NO_MASK, *THRESHOLDS)

    def automatic() -> list[Setting]:
        editor = AutomaticMask(bench.pipeline)
        result = bench.run(editor, edits, references, thresholds)
        settings = []
        for threshold in thresholds:
            name = f"threshold {threshold:g}" if threshold else "no mask"
            covered, spilt = coverage(torch.cat(editor.masks[threshold]), edits.masks.cpu())
            settings.append(bench.setting(name, result, threshold, {"covered": covered, "spilt": spilt}))
        return settings

    def drawn() -> list[Setting]:
        result = bench.run(TurboEdit(bench.pipeline, name="true mask"), edits, references, with_masks=True)
        return [bench.setting("true mask", result)]

    works = [
        Work("mask-automatic", [edits.digest, thresholds], len(thresholds) * len(edits), automatic),
        Work("mask-true", [edits.digest], len(edits), drawn),
    ]
    masked, (true,) = bench.measured("mask", works)
    found = dict(zip(thresholds, masked, strict=True))
    settings = (*found.values(), true)
    return Ablation(
        name="mask",
        title="Threshold of the automatic mask",
        words=(
            "Local edits: all but those of background and style. The automatic mask is where the attention to the "
            "words that differ exceeds a share of its maximum. The claims are judged at "
            f"{MASK_THRESHOLD:g}, which this project takes for maps as coarse as here; the paper takes 0.6 for "
            "SDXL's. How much of the true mask it covers, and how much of the rest, is measured after blurring."
        ),
        measures=("covered", "spilt", "changed", "kept", "psnr_outside", "psnr_inside"),
        settings=settings,
        edits=edits.edits,
        evidence={
            "mask_keeps": [difference("psnr_outside", found[MASK_THRESHOLD], found[NO_MASK])],
            "mask_drawn": [difference("psnr_outside", true, found[MASK_THRESHOLD])],
        },
        charts=(_chart(found),),
        columns=strip_columns(settings),
        strips=edit_strips(edits, _SHOWN, settings),
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


def _chart(found: dict[float, Setting]) -> Markup:
    lines = []
    drawings = (("covered", "of the true mask covered", _BLUE), ("spilt", "of the rest covered", _ORANGE))
    for measure, title, colour in (*drawings, ("changed", "edits that happened", _TEAL)):
        points = [
            (t, 100 * s.estimate(measure).mean, f"{t:g}: {100 * s.estimate(measure).mean:.0f} %")
            for t, s in found.items()
            if t
        ]
        lines.append(Series(title, colour, points))
    return line_chart(lines, "threshold", "%")
