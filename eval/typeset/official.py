"""PIE-Bench's own table of values, evaluation_result.csv, in the layout of its official evaluate.py."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.jobs.files import write_text

OFFICIAL = {
    "structure": "structure_distance",
    "psnr": "psnr_unedit_part",
    "lpips": "lpips_unedit_part",
    "mse": "mse_unedit_part",
    "ssim": "ssim_unedit_part",
    "clip_source": "clip_similarity_source_image",
    "clip_whole": "clip_similarity_target_image",
    "clip_edited": "clip_similarity_target_image_edit_part",
    "psnr_whole": "psnr",
    "lpips_whole": "lpips",
    "mse_whole": "mse",
    "ssim_whole": "ssim",
    "structure_background": "structure_distance_unedit_part",
    "psnr_edit": "psnr_edit_part",
    "lpips_edit": "lpips_edit_part",
    "mse_edit": "mse_edit_part",
    "ssim_edit": "ssim_edit_part",
    "structure_edit": "structure_distance_edit_part",
}
"""The official names of our measures, in the order of the official columns, further ones behind."""

NAME = "evaluation_result.csv"


def write_official(folder: Path, out: Path, references: Sequence[str] = ()) -> Path:
    """Write OUT/evaluation_result.csv from an evaluation's cases.csv: a line a case, columns "ROW|METRIC".

    The values are those of the published form, unscaled. As the official code has them, "nan" stands for what is not
    defined (and for edits that failed) and "inf" for the PSNR of pictures without any difference.

    Args:
        references: rows that are no methods and have no columns.
    """
    values: dict[str, dict[str, Mapping[str, str]]] = {}
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["form"] == "published" and line["row"] not in references:
                values.setdefault(line["key"], {})[line["row"]] = line
    rows = list(dict.fromkeys(row for found in values.values() for row in found))
    first = next((line for found in values.values() for line in found.values()), {})
    measures = [measure for measure in OFFICIAL if measure in first]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["file_id", *(f"{row}|{OFFICIAL[measure]}" for row in rows for measure in measures)])
    for key in sorted(values):
        writer.writerow([key, *(_value(values[key].get(row, {}), m) for row in rows for m in measures)])
    write_text(out / NAME, stream.getvalue())
    return out / NAME


def _value(line: Mapping[str, str], measure: str) -> str:
    error = line.get(measure.replace("psnr", "mse")) if measure.startswith("psnr") else None
    if error and float(error) == 0:
        return "inf"
    return line.get(measure) or "nan"
