"""Null-text inversion against its variants: how well guided sampling gives back a picture, by the number of updates.

    python -m eval.null_text_ablation --backbone models/miniature/teacher --out runs/null_text_ablation

The ablation of Mokady et al. 2023 (section 4, fig. 4) on test scenes. Leaves DIR/index.html, results.json and
reconstructions.csv (a row for each scene, variant and number of iterations).
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data.jobs.command import run
from data.pages.charts import Series, line_chart
from data.world.captions import long_caption
from data.world.edits import EDIT_KINDS
from data.world.splits import sample_edits, sample_scene
from eval.editors.editor import InvertedImages
from eval.editors.few_steps import decode_latents
from eval.editors.null_text import NullText
from eval.editors.null_text_variants import (
    GlobalNullText,
    PivotalTextualInversion,
    RandomPivot,
    TextualInversion,
    WithoutPivot,
    random_captions,
)
from eval.editors.options import NEVER, NullTextSchedule
from eval.editors.titles import render_page, title_of
from eval.harness.exports import choose_device, load_scene_backbone
from eval.harness.results import write_results, write_table
from eval.metrics.pixels import Estimate, mse, psnr
from eval.reconstructions.fidelity import Row, round_trip
from eval.scene_edits.edit_set import EditSet, edit_set
from models.ddim import Ddim

logger = logging.getLogger(__name__)

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
_NUM_CAPTIONS = 64


def ablate_null_text(
    out: Path,
    backbone: Path = Path("models/miniature/teacher"),
    num: int = 8,
    iterations: tuple[int, ...] = (0, 1, 2, 5, 10, 20),
    variants: tuple[str, ...] = tuple(VARIANTS),
    num_steps: int = 20,
    guidance: float = 3.0,
    lr: float = 1e-2,
    split: Literal["validation", "test"] = "test",
    batch: int = 8,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the reconstructions of null-text inversion and of its variants after more and more iterations.

    Nothing stops early here, so that all variants have taken the same number of updates.

    Args:
        out: folder of the report
        backbone: a Stable Diffusion pipeline that makes scenes
        num: number of scenes
        iterations: of each timestep; 0 is DDIM inversion
        variants: some of null_text, null_text_random_caption, textual_inversion_pivot, null_text_random_pivot,
            null_text_global, textual_inversion, null_text_without_pivot
        num_steps: of DDIM
        guidance: of the sampling
        lr: learning rate of the first timestep
        split: validation for the choice of lr and iterations
        batch: images at a time
        seed: of the scenes
        device: auto, cpu, cuda ...
    """
    _check(num, iterations, variants, batch)
    place = choose_device(device)
    model = load_scene_backbone(backbone, place)
    ddim = Ddim(model.schedule, num_steps)
    scenes = edit_set([sample_edits(split, seed, i, EDIT_KINDS[i % len(EDIT_KINDS)]) for i in range(num)], place)
    captions = [long_caption(sample_scene("validation", seed, index)) for index in range(_NUM_CAPTIONS)]
    rows: list[Row] = []
    rounds = sum(count + 1 for count in iterations) * len(variants) * num
    with tqdm(total=rounds, unit="round", desc="null-text ablation") as bar:
        for name in variants:
            bar.set_postfix_str(name)
            for count in iterations:
                schedule = NullTextSchedule(count, lr=lr, stop=NEVER, stop_growth=0.0)
                editor = VARIANTS[name](model, ddim, guidance, schedule=schedule)
                for part in scenes.batches(batch):
                    prompts: Sequence[str] = part.source_prompts
                    if name == RANDOM_CAPTION:
                        prompts = random_captions(part.sources, prompts, captions)
                    rows += _rows(name, count, editor, part, prompts)
                    bar.update((count + 1) * len(part))
    results = _results(rows, variants, iterations, num_steps)
    trip = round_trip(model, scenes.sources)
    results["vae"] = {"psnr": Estimate.of(psnr(trip.decoded, trip.images).tolist()).to_dict()}
    results["about"] = {
        "backbone": str(backbone),
        "scenes": num,
        "num_steps": num_steps,
        "guidance": guidance,
        "lr": lr,
        "split": split,
        "seed": seed,
        "device": place.type,
    }
    write_results(out / "results.json", results)
    write_table(out / "reconstructions.csv", rows)
    page = _write_page(out, results)
    logger.info("%s", summary(results))
    logger.info("report: %s", page)
    return results


def _check(num: int, iterations: Sequence[int], variants: Sequence[str], batch: int) -> None:
    if num < 1 or batch < 1:
        raise ValueError(f"num is {num} and batch is {batch}; expected at least 1")
    if not iterations or min(iterations) < 0:
        raise ValueError(f"iterations are {list(iterations)}; expected numbers from 0 on")
    if unknown := sorted(set(variants) - set(VARIANTS)):
        raise ValueError(f"variants {', '.join(unknown)} are unknown; expected some of {', '.join(VARIANTS)}")


def _rows(name: str, count: int, editor: NullText, part: EditSet, prompts: Sequence[str]) -> list[Row]:
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


def _results(rows: Sequence[Row], variants: Sequence[str], iterations: Sequence[int], num_steps: int) -> dict[str, Any]:
    """The entry `variants`: for each its points, estimates as dicts of mean, se, n."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in variants:
        for count in iterations:
            chosen = [row for row in rows if (row["variant"], row["iterations"]) == (name, count)]
            point: dict[str, Any] = {"iterations": count, "updates": count * num_steps}
            point |= {m: Estimate.of(float(row[m]) for row in chosen).to_dict() for m in MEASURED}
            found.setdefault(name, []).append(point)
    return {"variants": found}


def _write_page(out: Path, results: dict[str, Any]) -> Path:
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


def summary(results: dict[str, Any]) -> str:
    """PSNR to the VAE's round trip by iterations, as text."""
    points = next(iter(results["variants"].values()))
    lines = [f"PSNR to the VAE, dB, n = {points[0]['psnr']['n']}; iterations of each timestep:"]
    lines.append(" " * 26 + "".join(f"{p['iterations']:>16}" for p in points))
    for name, found in results["variants"].items():
        cells = (p["psnr_to_vae"] for p in found)
        lines.append(f"{name:26}" + "".join(f"{c['mean']:8.2f} ± {c['se'] or 0:5.2f}" for c in cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.null_text_ablation", ablate_null_text, argv)


if __name__ == "__main__":
    main()
