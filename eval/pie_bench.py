"""PIE-Bench: an exported encoder's edits beside the methods that the papers compare with, and the published figures.

    python -m eval.pie_bench --encoder EXPORT --data PIE_BENCH --out DIR [--teacher.path SD] [--captioner LLAVA]
    python -m eval.pie_bench --config configs/eval/pie_miniature.yaml --encoder EXPORT

Leaves DIR/index.html, results.json, cases.csv, and DIR/edits and DIR/measures, from which the same command goes on. It
may run in several processes at once (accelerate launch, torchrun, srun, or by hand), which share the work.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from data.captioning.maker import CaptioningConfig
from data.jobs.command import run
from data.jobs.files import whole
from data.jobs.sharing import Ranks
from eval.harness.exports import choose_device, load_encoder
from eval.harness.results import write_results, write_table
from eval.metrics.config import MetricConfig
from eval.metrics.networks import load_metric_models
from eval.pie.about import data_digest, device_name, differences_from_published, versions
from eval.pie.cases import TYPE_NAMES, BadAnnotation, PieCase, read_pie_bench
from eval.pie.config import TeacherConfig
from eval.pie.edits import PieRow, edit_all
from eval.pie.external import take_external
from eval.pie.figures import Check, reference_checks, row_figures
from eval.pie.measures import Values, measure_all
from eval.pie.metrics import PieMetrics
from eval.pie.page import PageCase, PageEdit, case_rows, write_pie_page
from eval.pie.prompts import long_prompts, short_prompts, written_prompts
from eval.pie.rows import Rows, all_rows
from models.backbone import Backbone
from models.turboedit_pipeline import TurboEditPipeline

logger = logging.getLogger(__name__)

_TEACHER = TeacherConfig()
_METRICS = MetricConfig()


def evaluate_pie_bench(
    data: Path,
    out: Path,
    encoder: Path | None = None,
    teacher: TeacherConfig = _TEACHER,
    instruct: dict[str, str] | None = None,
    external: dict[str, Path] | None = None,
    captioner: str | None = None,
    editors: list[str] | Literal["all"] = "all",
    num: int | None = None,
    metrics: MetricConfig = _METRICS,
    jpeg: bool = False,
    batch: int = 16,
    page_side: int = 256,
    seed: int = 1234,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
) -> dict[str, Any] | None:
    """Edit PIE-Bench with an encoder and the methods beside it, measure as its official code does, and show all cases.

    Args:
        data: PIE-Bench's folder, with mapping_file.json and annotation_images; `python -m data.scene_pie_bench` makes
            one of scenes for the miniature
        out: folder of the evaluation; the same command goes on where it was interrupted
        encoder: folder of an exported encoder; null leaves out TurboEdit and all few-step methods
        teacher: the guided model of the multi-step methods
        instruct: InstructPix2Pix-like models by the name of their row, such as --instruct.magicbrush FOLDER_OR_HUB_ID
        external: folders of pictures that something else has edited, by the name of their row, as KEY.png or under the
            benchmark's own names, such as --external.theirs FOLDER
        captioner: image-and-text model (folder or hub id, such as llava-hf/llava-1.5-7b-hf) that describes the sources
            and rewrites by the instructions, for TurboEdit's instructive row; null leaves it out
        editors: names of the rows, beside the references, as '[turboedit, direct]'; all are those that can run, but
            StyleDiffusion's ablations
        num: how many cases, the types taking turns; null for all
        metrics: the networks that measure
        jpeg: measure edits after a JPEG of quality 75, with which the official runners saved them
        batch: pictures at a time in the metrics; editors get one
        page_side: side in pixels of the pictures in the page, at most
        seed: of the randomness of each picture's edit; what inversions draw has seeds of its own
        dtype: of UNets and text encoders
        device: auto, cpu, cuda ...; of several processes each takes a GPU of its own
    """
    _check_options({"num": num, "batch": batch, "page_side": page_side}, instruct or {}, external or {})
    place, weights = choose_device(device), getattr(torch, dtype)
    pipeline = None if encoder is None else load_encoder(encoder, place, weights)
    model = None if teacher.path is None else Backbone.load(teacher.path, device=place, dtype=weights)
    cases, bad = read_pie_bench(data, _side(pipeline, model))
    cases = in_turn(cases, num)
    asked = {name: path for name, path in (instruct or {}).items() if editors == "all" or name in editors}
    rows = all_rows(pipeline, model, teacher, asked, cases, captioner, place, weights).chosen(
        None if editors == "all" else editors
    )
    measuring = PieMetrics(load_metric_models(metrics, place))

    writer = None
    if captioner is not None:
        tokenizers = None if encoder is None else str(encoder)
        writer = CaptioningConfig("transformers", model=captioner, backbone=tokenizers, device=device)
    _edit(rows.found, cases, out, seed, place, writer)
    external_rows = [take_external(name, folder, cases, out / "edits") for name, folder in (external or {}).items()]
    rows = Rows([*external_rows, *rows.found], rows.left_out)
    names, references = [row.name for row in rows.found], [row.name for row in rows.found if row.reference]
    values = measure_all(names, cases, out / "edits", out / "measures", measuring, batch, jpeg, references)
    if Ranks.of_launch().rank:
        return None  # the first process writes the results
    about = {
        "encoder": encoder and str(encoder),
        "teacher": teacher.path and {name: getattr(teacher, name) for name in ("path", "num_steps", "guidance")},
        "captioner": captioner,
        "data": str(data),
        "cases": {"number": len(cases), "digest": data_digest(cases)},
        "seed": seed,
        "jpeg": jpeg,
        "dtype": dtype,
        "device": device_name(place),
        "metrics": measuring.about,
        "differs": differences_from_published(cases, measuring.about, jpeg),
        "versions": versions(),
    }
    return _report(out, about, rows, cases, bad, values, page_side)


def _check_options(
    numbers: Mapping[str, int | None], instruct: Mapping[str, str], external: Mapping[str, Path]
) -> None:
    if wrong := [f"{name} is {value}" for name, value in numbers.items() if value is not None and value < 1]:
        raise ValueError(f"{', '.join(wrong)}; expected at least 1")
    if strange := [name for name in (*external, *instruct) if not re.fullmatch(r"\w[\w-]*", name)]:
        raise ValueError(f"{', '.join(strange)} cannot be the name of a row; expected letters, digits, _ and -")
    if twice := sorted(set(external) & set(instruct)):
        raise ValueError(f"{', '.join(twice)} names an external row and an instructive model; give one another name")


def _side(*models: TurboEditPipeline | Backbone | None) -> int | None:
    """The side in pixels at which all given models work. Raises ValueError if they differ."""
    backbones = [model.backbone if isinstance(model, TurboEditPipeline) else model for model in models if model]
    sides = sorted({backbone.image_size for backbone in backbones})
    if len(sides) > 1:
        raise ValueError(f"the encoder's generator and the teacher work at {sides[0]} and {sides[1]} px; expected one")
    return sides[0] if sides else None


def in_turn(cases: Sequence[PieCase], num: int | None) -> list[PieCase]:
    """At most `num` cases, the types taking turns, in the order in which they are given."""
    seen: dict[str, int] = {}
    order = []
    for case in cases:
        seen[case.type_id] = seen.get(case.type_id, 0) + 1
        order.append((seen[case.type_id], case.type_id, case.key))
    chosen = {key for _, _, key in sorted(order)[:num]}
    return [case for case in cases if case.key in chosen]


def _edit(
    rows: Sequence[PieRow],
    cases: Sequence[PieCase],
    out: Path,
    seed: int,
    device: torch.device,
    writer: CaptioningConfig | None,
) -> None:
    """All rows' edits, with the prompts that each is to have."""
    prompts = {"short": short_prompts(cases), "long": long_prompts(cases)}
    if writer is not None and any(row.prompts == "instructive" and row.needs_prompts for row in rows):
        prompts["instructive"] = written_prompts(cases, out / "prompts", writer)
    for row in rows:
        edit_all(row, cases, prompts[row.prompts if row.needs_prompts else "short"], out / "edits", seed, device)


def _report(
    out: Path,
    about: Mapping[str, Any],
    rows: Rows,
    cases: Sequence[PieCase],
    bad: Sequence[BadAnnotation],
    values: Mapping[str, Mapping[str, Values]],
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
    write_results(out / "results.json", results)
    write_table(out / "cases.csv", case_rows(pages))
    page = write_pie_page(out, results, pages, page_side)
    logger.info("%s", summary(results))
    logger.info("page: %s", page)
    _require(checks)
    return results


def _page_cases(
    rows: Sequence[PieRow], cases: Sequence[PieCase], values: Mapping[str, Mapping[str, Values]], out: Path
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


def summary(results: Mapping[str, Any]) -> str:
    """The published form of the main figures as text."""
    lines = [f"{'row':32}{'mask':>10}{'PSNR':>8}{'SSIM':>8}{'CLIP':>8}{'n':>6}"]
    for row in results["rows"]:
        found = row["forms"]["published"]
        means = [found.get(name, {}).get("mean") for name in ("psnr", "ssim", "clip_whole")]
        columns = "".join(f"{'–' if mean is None else format(mean, '.2f'):>8}" for mean in means)
        lines.append(f"{row['row']:32}{row['mask']:>10}{columns}{row['n']:6}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.pie_bench", evaluate_pie_bench, argv)


if __name__ == "__main__":
    main()
