"""PIE-Bench: an exported encoder's edits beside the methods that the papers compare with, and the published figures.

    python -m eval.pie_bench --encoder EXPORT --data PIE_BENCH --out DIR [--teacher.path SD] [--captioner LLAVA]
    python -m eval.pie_bench --config configs/eval/pie_miniature.yaml --encoder EXPORT

Leaves DIR/index.html, results.json, cases.csv, and DIR/edits and DIR/measures, from which the same command goes on. It
may run in several processes at once (accelerate launch, torchrun, srun, or by hand), which share the work.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from data.jobs.command import existing, run, told
from eval.external.options import ExternalRow, external_rows, gathered_external
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one
from eval.harness.training import training_steps
from eval.metrics.config import MetricConfig
from eval.pie.config import InstructModel, SwiftEditConfig, TeacherConfig
from models.options import MASK_THRESHOLD

_TEACHER = TeacherConfig()
_SWIFTEDIT = SwiftEditConfig()
_METRICS = MetricConfig()


def evaluate_pie_bench(
    data: Path,
    out: Path,
    encoder: str | None = None,
    teacher: TeacherConfig = _TEACHER,
    instruct: dict[str, str] | None = None,
    instruct_variants: dict[str, str] | None = None,
    instruct_loras: dict[str, Path] | None = None,
    instruct_steps: dict[str, int] | None = None,
    swiftedit: SwiftEditConfig = _SWIFTEDIT,
    external: dict[str, Path | ExternalRow] | None = None,
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
        instruct: models that follow orders by the name of their row, such as --instruct.magicbrush FOLDER_OR_HUB_ID:
            InstructPix2Pix and its likes, FLUX.2-klein, FLUX.1-Kontext, Qwen-Image-Edit
        instruct_variants: file variants of their weights, such as --instruct_variants.magicbrush fp16
        instruct_loras: files of LoRAs of FLUX's and Qwen's; those of Qwen are taken for Qwen-Image-Lightning's
        instruct_steps: numbers of their steps, such as --instruct_steps.qwen 8; by default 50 of InstructPix2Pix, 4 of
            klein and with Lightning, 28 of Kontext, 50 of Qwen
        swiftedit: SwiftEdit's released weights
        external: folders of pictures that something else has edited, by the name of their row, as KEY.png or under the
            benchmark's own names, such as --external.theirs FOLDER; what their row says is given behind the name:
            --external.theirs.title WORDS, .prompts short|long|instructive, .mask none|automatic|given|unsaid, .steps N,
            .seconds_invert S, .seconds_edit S; --external.theirs.resize true takes pictures of another size
        captioner: image-and-text model (folder or hub id, such as llava-hf/llava-1.5-7b-hf) that describes the sources
            and rewrites by the instructions, for TurboEdit's instructive row; null leaves it out
        mask_threshold: share of its strongest place above which an automatic mask of TurboEdit lets a place change
        editors: names of the rows, beside the references, as '[turboedit, direct]'; all are those that can run and take
            less than a day for the whole benchmark on one GPU, so not StyleDiffusion's fits and their ablations nor
            Imagic
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
    theirs, loras, numbers = external_rows(external), instruct_loras or {}, instruct_steps or {}
    _check_names(instruct or {}, theirs, instruct_variants or {}, loras, numbers)
    at_least_one(**{f"instruct_steps.{name}": count for name, count in numbers.items()})
    existing(data, "--data", "folder of PIE-Bench")
    for option, export in {"--encoder": encoder, "--teacher.mapper": teacher.mapper}.items():
        if export is not None:
            folder_or_hub_id(export, option)
    files = {f"--instruct_loras.{name}": path for name, path in loras.items()} | {"--metrics.lpips": metrics.lpips}
    for option, path in files.items():
        if path is not None:
            existing(path, option)

    from data.captioning.config import CaptioningConfig
    from data.jobs.device import choose_device
    from data.jobs.sharing import Ranks
    from eval.external.pictures import take_external
    from eval.harness.exports import export_folder, generator_place, load_encoder
    from eval.harness.precision import guided_dtype, name_of
    from eval.metrics.networks import load_metric_models
    from eval.pie.about import data_digest, differences_from_published
    from eval.pie.cases import in_turn, read_pie_bench
    from eval.pie.evaluation import common_side, edit_all_rows, tell_left_out, write_report
    from eval.pie.measures import measure_edits
    from eval.pie.metrics import PieMetrics
    from eval.pie.rows import PieRows, all_rows, refuse_built_in
    from models.backbone import Backbone

    refuse_built_in([*theirs, *(instruct or {})])
    place = choose_device(device)
    pipeline = None if encoder is None else load_encoder(encoder, place, dtype)
    model = None
    if teacher.path is not None:
        weights = guided_dtype(dtype, teacher.path, place)
        model = Backbone.load(teacher.path, device=place, dtype=weights, variant=teacher.variant)
    every, bad = read_pie_bench(data, common_side(pipeline, model))
    cases = in_turn(every, num)
    asked = {
        name: InstructModel(
            path, (instruct_variants or {}).get(name), str(loras[name]) if name in loras else None, numbers.get(name)
        )
        for name, path in (instruct or {}).items()
        if editors == "all" or name in editors
    }
    wants_swiftedit = editors == "all" or "swiftedit" in editors
    rows = all_rows(
        pipeline,
        model,
        teacher,
        asked,
        cases,
        captioner,
        place,
        dtype,
        mask_threshold,
        swiftedit if wants_swiftedit else None,
    ).chosen(None if editors == "all" else editors)
    measuring = PieMetrics(load_metric_models(metrics, place))

    tell_left_out(rows, every, bad, measuring.about.values())
    writer = None
    if captioner is not None:
        tokenizers = None if encoder is None else generator_place(encoder)
        writer = CaptioningConfig("transformers", model=captioner, backbone=tokenizers, device=device)
    taken = [take_external(name, row, cases, out / "edits") for name, row in theirs.items()]
    edit_all_rows(rows.found, cases, out, seed, place, writer)
    rows = PieRows([*taken, *rows.found], rows.left_out)
    names, references = [row.name for row in rows.found], [row.name for row in rows.found if row.reference]
    values = measure_edits(names, cases, out / "edits", out / "measures", measuring, batch, jpeg, references)
    if Ranks.of_launch().rank:
        return None  # the first process writes the results
    conditions = about(
        place,
        encoder=encoder,
        training=None if encoder is None else training_steps(export_folder(encoder)),
        swiftedit=swiftedit.path and asdict(swiftedit),
        teacher=teacher.path and {name: getattr(teacher, name) for name in ("path", "num_steps", "guidance")},
        captioner=captioner,
        mask_threshold=mask_threshold,
        data=data,
        cases={"number": len(cases), "digest": data_digest(cases)},
        seed=seed,
        jpeg=jpeg,
        dtype=dtype if pipeline is None else name_of(pipeline.encoder.dtype),
        metrics=measuring.about,
        differs=differences_from_published(cases, measuring.models.differs, jpeg),
    )
    # Evaluations of PIE-Bench have always had the device's name there.
    conditions["device"] = conditions.pop("device_name")
    return write_report(out, conditions, rows, cases, bad, values, page_side, of=len(every))


def _check_names(
    instruct: Mapping[str, str],
    external: Mapping[str, ExternalRow],
    variants: Mapping[str, str],
    loras: Mapping[str, Path],
    steps: Mapping[str, int],
) -> None:
    if strange := [name for name in (*external, *instruct) if not re.fullmatch(r"\w[\w-]*", name)]:
        raise ValueError(f"{', '.join(strange)} cannot be the name of a row; expected letters, digits, _ and -")
    if twice := sorted(set(external) & set(instruct)):
        raise ValueError(f"{', '.join(twice)} names an external row and an instructive model; give one another name")
    for option, names in {"instruct_variants": variants, "instruct_loras": loras, "instruct_steps": steps}.items():
        if unknown := sorted(set(names) - set(instruct)):
            raise ValueError(f"--{option} names {', '.join(unknown)}, of which --instruct has no model; give both")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    with told("eval.pie_bench"):
        words = gathered_external(sys.argv[1:] if argv is None else argv)
    run("eval.pie_bench", evaluate_pie_bench, words)


if __name__ == "__main__":
    main()
