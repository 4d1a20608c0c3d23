"""PIE-Bench: an exported encoder's edits beside the methods that the papers compare with, and the published figures.

    python -m eval.pie_bench --encoder EXPORT --data PIE_BENCH --out DIR [--teacher.path SD] [--captioner LLAVA]
    python -m eval.pie_bench --config configs/eval/pie_miniature.yaml --encoder EXPORT

Leaves DIR/index.html, results.json, cases.csv, and DIR/edits and DIR/measures, from which the same command goes on. It
may run in several processes at once (accelerate launch, torchrun, srun, or by hand), which share the work.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one
from eval.harness.training import training_steps
from eval.metrics.config import MetricConfig
from eval.pie.config import TeacherConfig
from models.options import MASK_THRESHOLD

logger = logging.getLogger(__name__)

_TEACHER = TeacherConfig()
_METRICS = MetricConfig()


def evaluate_pie_bench(
    data: Path,
    out: Path,
    encoder: str | None = None,
    teacher: TeacherConfig = _TEACHER,
    instruct: dict[str, str] | None = None,
    instruct_variants: dict[str, str] | None = None,
    external: dict[str, Path] | None = None,
    captioner: str | None = None,
    mask_threshold: float = MASK_THRESHOLD,
    editors: list[str] | Literal["all"] = "all",
    num: int | None = None,
    metrics: MetricConfig = _METRICS,
    jpeg: bool = False,
    batch: int = 16,
    page_side: int = 256,
    seed: int = 1234,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any] | None:
    """Edit PIE-Bench with an encoder and the methods beside it, measure as its official code does, and show all cases.

    Args:
        data: PIE-Bench's folder, with mapping_file.json and annotation_images; `python -m data.scene_pie_bench` makes
            one of scenes for the miniature
        out: folder of the evaluation; the same command goes on where it was interrupted
        encoder: folder or hub id of an exported encoder; null leaves out TurboEdit and all few-step methods
        teacher: the guided model of the multi-step methods
        instruct: InstructPix2Pix-like models by the name of their row, such as --instruct.magicbrush FOLDER_OR_HUB_ID
        instruct_variants: file variants of their weights, such as --instruct_variants.magicbrush fp16
        external: folders of pictures that something else has edited, by the name of their row, as KEY.png or under the
            benchmark's own names, such as --external.theirs FOLDER
        captioner: image-and-text model (folder or hub id, such as llava-hf/llava-1.5-7b-hf) that describes the sources
            and rewrites by the instructions, for TurboEdit's instructive row; null leaves it out
        mask_threshold: share of its strongest place above which an automatic mask of TurboEdit lets a place change
        editors: names of the rows, beside the references, as '[turboedit, direct]'; all are those that can run, but
            StyleDiffusion's ablations
        num: number of cases, the types taking turns; null for all
        metrics: the networks that measure
        jpeg: measure edits after a JPEG of quality 75, with which the official runners saved them
        batch: pictures at a time in the metrics; editors get one
        page_side: side in pixels of the pictures in the page, at most
        seed: seed of each picture's edit; what inversions draw has seeds of its own
        dtype: type of UNets and text encoders; auto is on a GPU what the export holds, and for other models float32,
            but float16 for an SDXL; on a CPU float32, but bfloat16 for what is as large as SDXL
        device: auto, cpu, cuda ...; of several processes each takes a GPU of its own
    """
    at_least_one(num=num, batch=batch, page_side=page_side)
    _check_names(instruct or {}, external or {}, instruct_variants or {})
    existing(data, "--data", "folder of PIE-Bench")
    for option, export in {"--encoder": encoder, "--teacher.mapper": teacher.mapper}.items():
        if export is not None:
            folder_or_hub_id(export, option)
    files = {"--metrics.lpips": metrics.lpips} | {f"--external.{name}": path for name, path in (external or {}).items()}
    for option, path in files.items():
        if path is not None:
            existing(path, option)

    from data.captioning.config import CaptioningConfig
    from data.jobs.device import choose_device
    from data.jobs.sharing import Ranks
    from eval.harness.exports import export_folder, generator_place, load_encoder
    from eval.harness.precision import guided_dtype, name_of
    from eval.metrics.networks import load_metric_models
    from eval.pie.about import data_digest, differences_from_published
    from eval.pie.cases import in_turn, read_pie_bench
    from eval.pie.evaluation import common_side, edit_all_rows, write_report
    from eval.pie.external import take_external
    from eval.pie.measures import measure_edits
    from eval.pie.metrics import PieMetrics
    from eval.pie.rows import PieRows, all_rows
    from models.backbone import Backbone

    place = choose_device(device)
    pipeline = None if encoder is None else load_encoder(encoder, place, dtype)
    model = None
    if teacher.path is not None:
        weights = guided_dtype(dtype, teacher.path, place)
        model = Backbone.load(teacher.path, device=place, dtype=weights, variant=teacher.variant)
    cases, bad = read_pie_bench(data, common_side(pipeline, model))
    cases = in_turn(cases, num)
    asked = {
        name: (path, (instruct_variants or {}).get(name))
        for name, path in (instruct or {}).items()
        if editors == "all" or name in editors
    }
    rows = all_rows(pipeline, model, teacher, asked, cases, captioner, place, dtype, mask_threshold).chosen(
        None if editors == "all" else editors
    )
    for name, reason in rows.left_out.items():
        logger.warning("%s is left out: %s", name, reason)
    measuring = PieMetrics(load_metric_models(metrics, place))

    writer = None
    if captioner is not None:
        tokenizers = None if encoder is None else generator_place(encoder)
        writer = CaptioningConfig("transformers", model=captioner, backbone=tokenizers, device=device)
    edit_all_rows(rows.found, cases, out, seed, place, writer)
    external_rows = [take_external(name, folder, cases, out / "edits") for name, folder in (external or {}).items()]
    rows = PieRows([*external_rows, *rows.found], rows.left_out)
    names, references = [row.name for row in rows.found], [row.name for row in rows.found if row.reference]
    values = measure_edits(names, cases, out / "edits", out / "measures", measuring, batch, jpeg, references)
    if Ranks.of_launch().rank:
        return None  # the first process writes the results
    conditions = about(
        place,
        encoder=encoder,
        training=None if encoder is None else training_steps(export_folder(encoder)),
        teacher=teacher.path and {name: getattr(teacher, name) for name in ("path", "num_steps", "guidance")},
        captioner=captioner,
        mask_threshold=mask_threshold,
        data=data,
        cases={"number": len(cases), "digest": data_digest(cases)},
        seed=seed,
        jpeg=jpeg,
        dtype=dtype if pipeline is None else name_of(pipeline.encoder.dtype),
        metrics=measuring.about,
        differs=differences_from_published(cases, measuring.about, jpeg),
    )
    # Evaluations of PIE-Bench have always had the device's name there.
    conditions["device"] = conditions.pop("device_name")
    return write_report(out, conditions, rows, cases, bad, values, page_side)


def _check_names(instruct: Mapping[str, str], external: Mapping[str, Path], variants: Mapping[str, str]) -> None:
    if strange := [name for name in (*external, *instruct) if not re.fullmatch(r"\w[\w-]*", name)]:
        raise ValueError(f"{', '.join(strange)} cannot be the name of a row; expected letters, digits, _ and -")
    if twice := sorted(set(external) & set(instruct)):
        raise ValueError(f"{', '.join(twice)} names an external row and an instructive model; give one another name")
    if unknown := sorted(set(variants) - set(instruct)):
        raise ValueError(f"--instruct_variants names {', '.join(unknown)}, of which --instruct has no model; give both")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.pie_bench", evaluate_pie_bench, argv)


if __name__ == "__main__":
    main()
