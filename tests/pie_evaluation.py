"""A finished PIE-Bench evaluation of scenes, small but real: pictures on disk, results and cases for its page.

The rows are no methods: pictures made of source and true edit, so that it is known how each must come out.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.world.edits import EDIT_KINDS, Edit
from data.world.render import render
from data.world.splits import sample_edits
from eval.harness.results import write_results, write_table
from eval.metrics.pixels import Estimate
from eval.pie.page import PageCase, PageEdit, case_rows

NASTY = (
    "<script>alert(1)</script>",
    "a \"quoted\" 'caption' & </script><img src=x onerror=alert(2)>",
    "a 🦊 fox, <!-- <script> --> naïve \u2028 line, " + "antidisestablishmentarianism" * 6,
)
"""Captions of the first cases."""

ROWS: Mapping[str, tuple[str, str, bool]] = {
    "turboedit": ("TurboEdit", "none", False),
    "turboedit_given": ("TurboEdit, given mask", "given", False),
    "sdedit": ("SDEdit", "none", False),
    "identity": ("identity", "none", True),
    "truth": ("true edit", "none", True),
    "noise": ("random noise", "none", True),
}
"""Row: title, mask mode, whether it is a reference."""

MEASURES = ("structure", "psnr", "lpips", "mse", "ssim", "clip_whole", "clip_edited")


def make_cases(folder: Path, count: int = 18, sharpness: float = 0.9) -> list[PageCase]:
    """Cases of scenes with their pictures under `folder`.

    Args:
        sharpness: how much of the true edit the row turboedit has; the rest is of the source.
    """
    kinds = [EDIT_KINDS[number % len(EDIT_KINDS)] for number in range(count)]
    return [
        _case(folder, number, sample_edits("test", 0, number // len(EDIT_KINDS), kind), sharpness)
        for number, kind in enumerate(kinds)
    ]


def make_results(cases: Sequence[PageCase]) -> dict[str, Any]:
    """What results.json would hold for the cases."""
    return {
        "about": {
            "encoder": "EXPORT",
            "data": "scenes, <b>not</b> photographs",
            "seed": 0,
            "device": "a test's machine",
            "versions": {"python": "3.11", "torch": "2.13"},
            "mask_mode_note": "automatic masks come from cross-attention",
            "metrics": {"clip": "brightness, in place of a model", "lpips": "left out: no network"},
            "differs": ["https" + "a/word/that/is/longer/than/a/phone" * 4, "18 cases, PIE-Bench has 700"],
        },
        "rows": [_row(name, cases) for name in ROWS],
        "bad_annotations": [{"key": "000000000077", "reason": "mask is no list of starts and lengths"}],
        "left_out": [{"row": "plug_and_play", "reason": "needs a teacher: <none> was given"}],
        "types": {str(number): kind.replace("_", " ") for number, kind in enumerate(EDIT_KINDS, start=1)},
    }


def write_evaluation(folder: Path, count: int = 18, sharpness: float = 0.9) -> list[PageCase]:
    """A folder as eval.pie_bench leaves it, without the page."""
    cases = make_cases(folder, count, sharpness)
    write_results(folder / "results.json", make_results(cases))
    write_table(folder / "cases.csv", case_rows(cases))
    return cases


def _case(folder: Path, number: int, edit: Edit, sharpness: float) -> PageCase:
    key = f"{number:012d}"
    source, truth, mask = render(edit.source), render(edit.target), edit.mask()
    noise = np.random.default_rng(number).integers(0, 256, source.shape, np.uint8)
    blended = _mixed(_mixed(source, truth, sharpness), noise, 0.03)
    made = {
        "turboedit": blended,
        "turboedit_given": np.where(mask[..., None], blended, source),
        "sdedit": _mixed(blended, noise, 0.1 + 0.02 * number),
        "identity": source,
        "truth": truth,
        "noise": noise,
    }
    edits = []
    for row, picture in made.items():
        image = _saved(folder / "edits" / row / f"{key}.png", picture)
        ours = row.startswith("turboedit")
        reconstruction = (
            _saved(image.with_name(f"{key}.reconstruction.png"), _mixed(source, noise, 0.05)) if ours else None
        )
        own_mask = _saved(image.with_name(f"{key}.mask.png"), mask) if row == "turboedit_given" else None
        edits.append(PageEdit(row, image, reconstruction, own_mask, _values(picture, source, truth, mask)))
    source_prompt, target_prompt = edit.captions()
    return PageCase(
        key,
        str(1 + EDIT_KINDS.index(edit.kind)),
        NASTY[number] if number < len(NASTY) else source_prompt,
        target_prompt,
        edit.instruction,
        ("one", "other") if number % 2 else None,
        _saved(folder / "data" / f"{key}.png", source),
        _saved(folder / "data" / f"{key}.mask.png", mask),
        _saved(folder / "data" / f"{key}.truth.png", truth),
        tuple(edits),
    )


def _mixed(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    return np.round((1 - share) * first.astype(float) + share * second).astype(np.uint8)


def _saved(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def _values(
    picture: np.ndarray, source: np.ndarray, truth: np.ndarray, mask: np.ndarray
) -> dict[str, dict[str, float]]:
    """Both forms. In place of a text model: how near the picture is to the true edit."""
    likeness = 30 - 20 * float(np.abs(picture / 255 - truth / 255).mean())
    kept = ~mask
    zero_filled = float((((picture / 255 - source / 255) * kept[..., None]) ** 2).mean())
    errors = {"published": zero_filled if kept.any() else math.nan}
    errors["corrected"] = zero_filled * mask.size / kept.sum() if kept.any() else math.nan
    return {
        form: {
            "psnr": -10 * math.log10(max(error, 1e-10)),
            "mse": error,
            "ssim": 1 - math.sqrt(error),
            "lpips": math.nan,
            "structure": float(np.abs(picture / 255 - source / 255).mean()),
            "clip_whole": likeness,
            "clip_edited": likeness - 1,
        }
        for form, error in errors.items()
    }


def _row(name: str, cases: Sequence[PageCase]) -> dict[str, Any]:
    title, mask, reference = ROWS[name]
    found = [(case, next(edit for edit in case.edits if edit.row == name)) for case in cases]
    types = sorted({case.type_id for case in cases})
    cost = {"mean": 4.0, "se": 0.0, "n": len(found)}
    return {
        "row": name,
        "title": title,
        "prompts": "short",
        "mask": mask,
        "steps": None if reference else 4,
        "reference": reference,
        "n": len(found),
        "failed": 0,
        "forms": _forms([edit for _, edit in found]),
        "truth": None,
        "costs": dict.fromkeys(("nfe_invert", "nfe_edit", "seconds_invert", "seconds_edit"), cost) | {"peak_gb": None},
        "by_type": {type_id: _forms([edit for case, edit in found if case.type_id == type_id]) for type_id in types},
        "flags": ["Stands where it should not."] if name == "sdedit" else [],
    }


def _forms(edits: Sequence[PageEdit]) -> dict[str, Any]:
    return {
        form: {measure: Estimate.of(edit.values[form][measure] for edit in edits).to_dict() for measure in MEASURES}
        for form in ("published", "corrected")
    }
