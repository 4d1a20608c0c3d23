"""Guidance of a DDIM inversion against what it finds: how Gaussian the noise, how close the image (Null-text inversion,
Mokady et al. 2023, appendix B).

    python -m eval.inversion_guidance --backbone models/miniature/teacher --out runs/inversion_guidance

Leaves DIR/index.html, results.json and images.csv (a row for each image and guidance).
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.jobs.command import run
from data.pages.charts import Series, line_chart
from data.world.captions import long_caption
from data.world.render import SIDE, render
from data.world.splits import sample_scene
from eval.editors.few_steps import decode_latents
from eval.editors.titles import render_page
from eval.harness.captioned import CaptionedImage, captioned_images, stacked
from eval.harness.exports import choose_device
from eval.harness.results import write_results, write_table
from eval.metrics.measures import heading
from eval.metrics.pixels import Estimate, psnr
from eval.reconstructions.fidelity import Row, round_trip
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, guided_noise, matching
from models.pictures import from_picture
from models.text import Prompt

logger = logging.getLogger(__name__)

GAUSSIAN = -0.5 * math.log(2 * math.pi * math.e)
"""Expected log-likelihood of a dimension of noise that is drawn from N(0, 1)."""

MEASURED = ("log_likelihood", "psnr_to_vae")

BLUE = "#0b5fa5"


def evaluate_inversion_guidance(
    backbone: str,
    out: Path,
    data: Path | None = None,
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    num: int = 16,
    num_steps: int = 50,
    steps_offset: int = 1,
    batch: int = 16,
    device: str = "auto",
) -> dict[str, Any]:
    """Invert captioned images by DDIM under several weights of guidance, and sample them back under the same weight.

    Args:
        backbone: diffusers folder or hub id of a many-step model
        out: folder of the report
        data: shards with images, or a folder of pictures with captions; null for test scenes with their long captions
        guidances: weights w; 1 is the caption's own prediction
        num: number of images
        num_steps: of DDIM, in either direction
        steps_offset: 1 for Stable Diffusion's timesteps, 0 for those of the official codes
        batch: images at a time
        device: auto, cpu, cuda ...
    """
    if batch < 1 or num < 1 or not guidances:
        raise ValueError(f"batch is {batch}, num {num} and guidances {list(guidances)}; expected at least 1, 1 and one")
    place = choose_device(device)
    model = Backbone.load(backbone, device=place)
    ddim = Ddim(model.schedule, num_steps, steps_offset)
    if data is None and model.image_size != SIDE:
        raise ValueError(
            f"{backbone} is for pictures of {model.image_size} px, scenes have {SIDE}; give images by --data"
        )
    samples = _scenes(num) if data is None else captioned_images(data, model.image_size, num)
    rows: list[Row] = []
    with tqdm(total=len(guidances) * len(samples), unit="image", desc="inversion guidance") as bar:
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            rows += _measure(model, ddim, part, guidances, place, bar)
    results = {
        "guidances": [_estimates(rows, guidance) for guidance in guidances],
        "gaussian_log_likelihood": GAUSSIAN,
        "about": {
            "backbone": backbone,
            "data": "test scenes, long captions" if data is None else str(data),
            "timesteps": list(ddim.timesteps),
            "device": place.type,
        },
    }
    write_results(out / "results.json", results)
    write_table(out / "images.csv", rows)
    logger.info("%s", summary(results))
    logger.info("report: %s", _write_page(out, results))
    return results


def log_likelihood(noise: Tensor) -> Tensor:
    """Mean over its dimensions [B] of the log-density of `noise` [B, ...] under N(0, I), in nats."""
    return -0.5 * (noise.float().square().flatten(1).mean(1) + math.log(2 * math.pi))


def _scenes(num: int) -> list[CaptionedImage]:
    """The first test scenes."""
    scenes = [sample_scene("test", 0, index) for index in range(num)]
    return [
        CaptionedImage(f"{index:06d}", from_picture(render(scene)), long_caption(scene))
        for index, scene in enumerate(scenes)
    ]


@torch.no_grad()
def _measure(
    model: Backbone,
    ddim: Ddim,
    part: Sequence[CaptionedImage],
    guidances: Sequence[float],
    device: torch.device,
    bar: tqdm,
) -> list[Row]:
    """A row for each image of a batch and each guidance."""
    trip = round_trip(model, stacked(part).to(device))
    prompt = model.encode_text([sample.caption for sample in part])
    null = matching(model.encode_text([""]), prompt)
    rows: list[Row] = []
    for guidance in guidances:
        noise, found = _there_and_back(model, ddim, trip.latents, prompt, null, guidance)
        columns = (log_likelihood(noise), psnr(decode_latents(model, found), trip.decoded))
        values = {name: column.tolist() for name, column in zip(MEASURED, columns, strict=True)}
        for i, sample in enumerate(part):
            figures = {name: column[i] for name, column in values.items()}
            rows.append({"key": sample.key, "guidance": guidance, **figures})
        bar.update(len(part))
    return rows


def _there_and_back(
    model: Backbone, ddim: Ddim, x0: Tensor, prompt: Prompt, null: Prompt, guidance: float
) -> tuple[Tensor, Tensor]:
    """The noise [B, 4, h, w] to which latents x0 are inverted, and the latents that are sampled from it."""

    def predict(x: Tensor, step: int) -> Tensor:
        return guided_noise(model, x, ddim.timesteps[step], prompt, null, guidance)

    noise = ddim_pivots(model, ddim, x0, prompt, null, guidance)[0]
    return noise, ddim.denoise(noise, predict)[-1]


def _estimates(rows: Sequence[Row], guidance: float) -> dict[str, Any]:
    chosen = [row for row in rows if row["guidance"] == guidance]
    return {"guidance": guidance} | {
        name: Estimate.of(float(row[name]) for row in chosen).to_dict() for name in MEASURED
    }


def summary(results: dict[str, Any]) -> str:
    """The table in words."""
    lines = [f"{'guidance':>8}  {'log-likelihood':>18}  {'PSNR to VAE (dB)':>18}    n"]
    for entry in results["guidances"]:
        cells = [f"{_number(entry[name]):>18}" for name in MEASURED]
        lines.append(f"{entry['guidance']:>8g}  {'  '.join(cells)}  {entry['psnr_to_vae']['n']:>3}")
    return "\n".join([*lines, f"noise from N(0, 1) has a log-likelihood of {GAUSSIAN:.3f}"])


def _number(estimate: dict[str, Any]) -> str:
    return f"{estimate['mean']:.3f}" + ("" if estimate["se"] is None else f" ± {estimate['se']:.3f}")


def _write_page(out: Path, results: dict[str, Any]) -> Path:
    charts = []
    for name in MEASURED:
        label = heading(name)
        entries = results["guidances"]
        points = [(e["guidance"], e[name]["mean"], f"w = {e['guidance']:g}, {_number(e[name])}") for e in entries]
        charts.append(line_chart([Series(label, BLUE, points)], "guidance of the inversion w", label))
    return render_page(
        "inversion_guidance.html.j2",
        out,
        title="Guidance of a DDIM inversion",
        results=results,
        measures={name: heading(name) for name in MEASURED},
        charts=charts,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.inversion_guidance", evaluate_inversion_guidance, argv)


if __name__ == "__main__":
    main()
