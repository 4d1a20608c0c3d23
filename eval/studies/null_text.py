"""Null-text inversion and its variants: reconstructions after more and more updates (Mokady et al. 2023, fig. 4)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.pages.charts import Series, line_chart
from eval.editors.editor import InvertedImages
from eval.editors.few_steps import decode_latents
from eval.editors.null_text import NullText
from eval.editors.null_text_variants import (
    GlobalNullText,
    PivotalTextualInversion,
    RandomPivot,
    TextualInversion,
    WithoutPivot,
)
from eval.editors.titles import render_page, title_of
from eval.harness.results import Columns, estimate_words
from eval.metrics.pixels import Estimate, mse, psnr
from eval.reconstructions.fidelity import Row, round_trip
from eval.scene_edits.edit_set import EditSet

RANDOM_CAPTION = "null_text_random_caption"
VARIANTS: dict[str, type[NullText]] = {
    NullText.name: NullText,
    RANDOM_CAPTION: NullText,
    PivotalTextualInversion.name: PivotalTextualInversion,
    RandomPivot.name: RandomPivot,
    GlobalNullText.name: GlobalNullText,
    TextualInversion.name: TextualInversion,
    WithoutPivot.name: WithoutPivot,
}
COLOURS = dict(
    zip(VARIANTS, ("#0b5fa5", "#13a3a3", "#7d8a3c", "#e07b1f", "#9a5bc2", "#888888", "#d6478f"), strict=True)
)
MEASURED = ("psnr_to_vae", "psnr", "latent_mse", "seconds")


def reconstruction_rows_of(name: str, count: int, editor: NullText, part: EditSet, prompts: Sequence[str]) -> list[Row]:
    """One batch: a row for each scene."""
    trip = round_trip(editor.backbone, part.sources)
    start = time.perf_counter()
    trajectory = editor.fit(editor.source(part.sources, prompts)).trajectory
    seconds = (time.perf_counter() - start) / len(part)
    latent = editor.reconstruct(InvertedImages(tuple(prompts), {}, trajectory))[-1]
    picture = decode_latents(editor.backbone, latent)
    columns = {
        "psnr_to_vae": psnr(picture, trip.decoded).tolist(),
        "psnr": psnr(picture, trip.images).tolist(),
        "latent_mse": mse(latent, trip.latents).tolist(),
    }
    return [
        {
            "variant": name,
            "iterations": count,
            "caption": part.source_prompts[i],
            **{measure: values[i] for measure, values in columns.items()},
            "seconds": seconds,
        }
        for i in range(len(part))
    ]


def variant_figures(
    rows: Sequence[Row], variants: Sequence[str], iterations: Sequence[int], num_steps: int
) -> dict[str, list[dict[str, Any]]]:
    """Points of each variant; estimates as dicts of mean, se, n."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in variants:
        for count in iterations:
            chosen = [row for row in rows if (row["variant"], row["iterations"]) == (name, count)]
            point: dict[str, Any] = {"iterations": count, "updates": count * num_steps}
            point |= {m: Estimate.of_measure(m, (float(row[m]) for row in chosen)).to_dict() for m in MEASURED}
            found.setdefault(name, []).append(point)
    return found


def write_null_text_page(out: Path, results: dict[str, Any]) -> Path:
    """Write DIR/index.html of eval.null_text_ablation."""
    series = []
    for name, points in results["variants"].items():
        line = [
            (p["updates"], p["psnr_to_vae"]["mean"], f"{p['updates']} updates, {p['psnr_to_vae']['mean']:.1f} dB")
            for p in points
        ]
        series.append(Series(title_of(name), COLOURS[name], line))
    return render_page(
        "null_text_ablation.html.j2",
        out,
        title="Null-text inversion and its variants",
        results=results,
        colours=COLOURS,
        chart=line_chart(series, "updates an image", "PSNR to the VAE's round trip (dB)", whole_x=True),
    )


def variants_words(variants: dict[str, list[dict[str, Any]]]) -> str:
    """PSNR to the VAE by iterations of each timestep, as text."""
    points = next(iter(variants.values()))
    table = Columns("variant", *(str(point["iterations"]) for point in points))
    for name, found in variants.items():
        table.add(name, *(estimate_words(point["psnr_to_vae"], digits=2) for point in found))
    return f"PSNR to the VAE, dB, n = {points[0]['psnr']['n']}; iterations of each timestep:\n{table}"
