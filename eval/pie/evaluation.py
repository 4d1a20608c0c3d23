"""The parts of a PIE-Bench evaluation between its models and its report."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data.captioning.config import CaptioningConfig
from data.jobs.files import whole
from data.jobs.sharing import Ranks
from eval.harness.results import Columns, decibel_words, finish, mean_words
from eval.pie.cases import TYPE_NAMES, BadAnnotation, PieCase
from eval.pie.costs import TIMED, WORTH_TIMING, RowGroup, cost_words, expected_costs, in_groups
from eval.pie.edits import PieRow, PromptPairs, edit_all, edit_some
from eval.pie.figures import Check, reference_checks, row_figures, shared_figures
from eval.pie.measures import EditValues
from eval.pie.page import PageCase, PageEdit, case_rows, write_pie_page
from eval.pie.prompts import benchmark_prompts, long_prompts, written_prompts
from eval.pie.rows import PieRows
from eval.typeset.files import write_pie_tables
from models.backbone import Backbone
from models.turboedit_pipeline import TurboEditPipeline

logger = logging.getLogger(__name__)

LEFT_OUT = "left out"
"""What words on a metric hold where its network is not there (eval.metrics.networks)."""


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
    """Make all rows' edits, each with the prompts that it is to have; what they will cost is said after a few cases."""
    prompts = {"short": benchmark_prompts(cases), "long": long_prompts(cases)}
    if writer is not None and any(row.prompts == "instructive" and row.needs_prompts for row in rows):
        prompts["instructive"] = written_prompts(cases, out / "prompts", writer)
    groups, edits = in_groups(rows), out / "edits"
    if len(cases) >= WORTH_TIMING:
        for row, others, pairs in _with_prompts(groups, prompts):
            edit_some(row, cases[:TIMED], pairs, edits, seed, device, others)
        ranks = Ranks.of_launch()
        if ranks.rank == 0:
            logger.info("%s", cost_words(expected_costs(groups, cases, edits), ranks.world_size))
    for row, others, pairs in _with_prompts(groups, prompts):
        edit_all(row, cases, pairs, edits, seed, device, others)


def _with_prompts(
    groups: Sequence[RowGroup], prompts: Mapping[str, PromptPairs]
) -> Iterator[tuple[PieRow, tuple[PieRow, ...], PromptPairs]]:
    """Each row with those that share its inversions and the prompts of both."""
    for group in groups:
        yield group.row, group.others, prompts[group.row.prompts if group.row.needs_prompts else "short"]


def write_report(
    out: Path,
    about: Mapping[str, Any],
    rows: PieRows,
    cases: Sequence[PieCase],
    bad: Sequence[BadAnnotation],
    values: Mapping[str, Mapping[str, EditValues]],
    page_side: int,
    of: int,
) -> dict[str, Any]:
    """Everything that OUT shows.

    Args:
        of: number of the data's cases that can be used, of which `cases` are some.

    Raises:
        ValueError: a reference did not come out as it has to, or more is missing than there is.
    """
    checks = reference_checks(values)
    shared = shared_figures(rows.found, values)
    results: dict[str, Any] = {
        "about": about,
        "rows": [
            row_figures(row, cases, values[row.name], out / "edits") | {"shared": shared[row.name]}
            for row in rows.found
        ],
        "types": {type_id: name for type_id, name in TYPE_NAMES.items() if any(c.type_id == type_id for c in cases)},
        "checks": [check.to_dict() for check in checks],
        "left_out": [{"row": name, "reason": reason} for name, reason in rows.left_out.items()],
        "bad_annotations": [asdict(note) for note in bad],
    }
    pages = _page_cases(rows.found, cases, values, out)
    tables = {"cases.csv": case_rows(pages)}
    finish(out, results, published_summary(results), tables, lambda: write_pie_page(out, results, pages, page_side))
    _tell_failures(results["rows"])
    write_pie_tables(out, out / "tables")
    _require(checks)
    require_most(results["rows"], of, bad, about["metrics"])
    return results


def tell_left_out(
    rows: PieRows, cases: Sequence[PieCase], bad: Sequence[BadAnnotation], metrics: Iterable[str]
) -> None:
    """Log what an evaluation does without, as far as that is known before anything is edited.

    Args:
        metrics: Words on each network that measures, or why there is none.
    """
    left = [note for note in bad if note.left_out]
    if left:
        logger.warning(
            "%d of %d cases are left out. The first: %s, %s",
            len(left),
            len(left) + len(cases),
            left[0].key,
            left[0].reason,
        )
    for words in (words for words in metrics if LEFT_OUT in words):
        logger.warning("%s", words)
    for name, reason in rows.left_out.items():
        logger.warning("left out of the rows: %s (%s)", name, reason)


def _tell_failures(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in (row for row in rows if row["failed"]):
        reason = next(iter(row["failures"].values()))
        logger.warning("%s: %d edits failed and are in no mean. The first: %s", row["row"], row["failed"], reason)


def require_most(
    rows: Sequence[Mapping[str, Any]], cases: int, bad: Sequence[BadAnnotation], metrics: Mapping[str, str]
) -> None:
    """Raises ValueError where more is missing than there is: of the data's cases, the edits, or the metrics."""
    left, failed = sum(note.left_out for note in bad), sum(row["failed"] for row in rows)
    without = sum(LEFT_OUT in words for words in metrics.values())
    parts = {
        "cases of the data": (left, left + cases),
        "edits": (failed, sum(row["failed"] + row["n"] for row in rows if not row["reference"])),
        "networks of the metrics": (without, len(metrics)),
    }
    if lacking := [f"{count} of {all_} {what}" for what, (count, all_) in parts.items() if 2 * count > all_]:
        raise ValueError(f"the report is written, but most is missing: {', '.join(lacking)}; the page says why")


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
        means = [mean_words(found.get(name), digits=2) for name in ("ssim", "clip_whole")]
        table.add(row["row"], row["mask"], decibel_words(found.get("psnr"), 2), *means, str(row["n"]))
    return str(table)
