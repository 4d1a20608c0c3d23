"""The parts of a PIE-Bench evaluation between its models and its report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data.captioning.config import CaptioningConfig
from data.jobs.files import whole
from eval.harness.results import Columns, finish, mean_words
from eval.pie.cases import TYPE_NAMES, BadAnnotation, PieCase
from eval.pie.edits import PieRow, edit_all
from eval.pie.figures import Check, reference_checks, row_figures
from eval.pie.measures import EditValues
from eval.pie.page import PageCase, PageEdit, case_rows, write_pie_page
from eval.pie.prompts import benchmark_prompts, long_prompts, written_prompts
from eval.pie.rows import PieRows
from eval.typeset.files import write_pie_tables
from models.backbone import Backbone
from models.turboedit_pipeline import TurboEditPipeline


def common_side(*models: TurboEditPipeline | Backbone | None) -> int | None:
    """The side in pixels at which all given models work. Raises ValueError if they differ."""
    backbones = [model.backbone if isinstance(model, TurboEditPipeline) else model for model in models if model]
    sides = sorted({backbone.image_size for backbone in backbones})
    if len(sides) > 1:
        raise ValueError(f"the encoder's generator and the teacher work at {sides[0]} and {sides[1]} px; expected one")
    return sides[0] if sides else None


def edit_all_rows(
    rows: Sequence[PieRow],
    cases: Sequence[PieCase],
    out: Path,
    seed: int,
    device: torch.device,
    writer: CaptioningConfig | None,
) -> None:
    """Make all rows' edits, each with the prompts that it is to have."""
    prompts = {"short": benchmark_prompts(cases), "long": long_prompts(cases)}
    if writer is not None and any(row.prompts == "instructive" and row.needs_prompts for row in rows):
        prompts["instructive"] = written_prompts(cases, out / "prompts", writer)
    for row in rows:
        edit_all(row, cases, prompts[row.prompts if row.needs_prompts else "short"], out / "edits", seed, device)


def write_report(
    out: Path,
    about: Mapping[str, Any],
    rows: PieRows,
    cases: Sequence[PieCase],
    bad: Sequence[BadAnnotation],
    values: Mapping[str, Mapping[str, EditValues]],
    page_side: int,
) -> dict[str, Any]:
    """Everything that OUT shows. Raises ValueError if a reference did not come out as it has to."""
    checks = reference_checks(values)
    results = {
        "about": about,
        "rows": [row_figures(row, cases, values[row.name], out / "edits") for row in rows.found],
        "types": {type_id: name for type_id, name in TYPE_NAMES.items() if any(c.type_id == type_id for c in cases)},
        "checks": [check.to_dict() for check in checks],
        "left_out": [{"row": name, "reason": reason} for name, reason in rows.left_out.items()],
        "bad_annotations": [asdict(note) for note in bad],
    }
    pages = _page_cases(rows.found, cases, values, out)
    tables = {"cases.csv": case_rows(pages)}
    finish(out, results, published_summary(results), tables, lambda: write_pie_page(out, results, pages, page_side))
    write_pie_tables(out, out / "tables")
    _require(checks)
    return results


def _page_cases(
    rows: Sequence[PieRow], cases: Sequence[PieCase], values: Mapping[str, Mapping[str, EditValues]], out: Path
) -> list[PageCase]:
    """Cases with the files of their pictures; the annotated masks are written beside the edits."""
    edits, masks = out / "edits", out / "masks"
    masks.mkdir(exist_ok=True)

    def there(row: str, name: str) -> Path | None:
        path = edits / row / name
        return path if path.is_file() else None

    pages = []
    for case in cases:
        mask = masks / f"{case.key}.png"
        with whole(mask) as path:
            Image.fromarray(case.mask).save(path, "PNG")
        made = [
            PageEdit(
                row.name,
                edits / row.name / f"{case.key}.png",
                there(row.name, f"{case.key}.reconstruction.png"),
                there(row.name, f"{case.key}.mask.png"),
                values[row.name][case.key],
            )
            for row in rows
            if case.key in values[row.name]
        ]
        texts = (case.source_prompt, case.target_prompt, case.instruction, case.blended)
        pages.append(PageCase(case.key, case.type_id, *texts, case.image, mask, case.truth, tuple(made)))
    return pages


def _require(checks: Sequence[Check]) -> None:
    if broken := [f"{check.row}: {check.expectation}, found {check.found}" for check in checks if not check.holds]:
        raise ValueError(f"a reference did not come out as it has to, so trust no figure: {'; '.join(broken)}")


def published_summary(results: Mapping[str, Any]) -> str:
    """The published form of the main figures as text."""
    table = Columns("row", "mask", "PSNR", "SSIM", "CLIP", "n")
    for row in results["rows"]:
        found = row["forms"]["published"]
        means = [mean_words(found.get(name), digits=2) for name in ("psnr", "ssim", "clip_whole")]
        table.add(row["row"], row["mask"], *means, str(row["n"]))
    return str(table)
