"""Guidance of a DDIM inversion: how Gaussian the noise that it finds, and how close the image that comes back."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.pages.charts import Series, line_chart
from data.world.captions import long_caption
from data.world.render import render
from data.world.splits import sample_scene
from eval.editors.few_steps import decode_latents
from eval.editors.titles import render_page
from eval.harness.captioned import CaptionedImage, stacked
from eval.harness.results import Columns, estimate_words
from eval.metrics.measures import heading
from eval.metrics.pixels import Estimate, psnr
from eval.reconstructions.fidelity import Row, round_trip
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, guided_noise, matching
from models.pictures import from_picture
from models.text import Prompt

GAUSSIAN = -0.5 * math.log(2 * math.pi * math.e)
"""Expected log-likelihood of a dimension of noise that is drawn from N(0, 1)."""

MEASURED = ("log_likelihood", "psnr_to_vae")

BLUE = "#0b5fa5"


def log_likelihood(noise: Tensor) -> Tensor:
    """Mean over its dimensions [B] of the log-density of `noise` [B, ...] under N(0, I), in nats."""
    return -0.5 * (noise.float().square().flatten(1).mean(1) + math.log(2 * math.pi))


def captioned_scenes(num: int) -> list[CaptionedImage]:
    """The first test scenes."""
    scenes = [sample_scene("test", 0, index) for index in range(num)]
    return [
        CaptionedImage(f"{index:06d}", from_picture(render(scene)), long_caption(scene))
        for index, scene in enumerate(scenes)
    ]


@torch.no_grad()
def rows_at(
    model: Backbone, ddim: Ddim, part: Sequence[CaptionedImage], guidance: float, device: torch.device
) -> list[Row]:
    """A row for each image of a batch at one guidance."""
    trip = round_trip(model, stacked(part).to(device))
    prompt = model.encode_text([sample.caption for sample in part], model.size_of(trip.latents))
    null = matching(model.encode_text([""]), prompt)
    noise, found = _there_and_back(model, ddim, trip.latents, prompt, null, guidance)
    columns = (log_likelihood(noise), psnr(decode_latents(model, found), trip.decoded))
    values = {name: column.tolist() for name, column in zip(MEASURED, columns, strict=True)}
    return [
        {"key": sample.key, "guidance": guidance, **{name: column[i] for name, column in values.items()}}
        for i, sample in enumerate(part)
    ]


def _there_and_back(
    model: Backbone, ddim: Ddim, x0: Tensor, prompt: Prompt, null: Prompt, guidance: float
) -> tuple[Tensor, Tensor]:
    """The noise [B, 4, h, w] to which latents x0 are inverted, and the latents that are sampled from it."""

    def predict(x: Tensor, step: int) -> Tensor:
        return guided_noise(model, x, ddim.timesteps[step], prompt, null, guidance)

    noise = ddim_pivots(model, ddim, x0, prompt, null, guidance)[0]
    return noise, ddim.denoise(noise, predict)[-1]


def guidance_figures(rows: Sequence[Row], guidance: float) -> dict[str, Any]:
    """Means over the images at one guidance; estimates as dicts of mean, se, n."""
    chosen = [row for row in rows if row["guidance"] == guidance]
    return {"guidance": guidance} | {
        name: Estimate.of_measure(name, (float(row[name]) for row in chosen)).to_dict() for name in MEASURED
    }


def guidance_table(results: dict[str, Any]) -> str:
    """Figures by guidance as text."""
    table = Columns("guidance", "log-likelihood", "PSNR to VAE (dB)", "n")
    for entry in results["guidances"]:
        cells = (estimate_words(entry[name], digits=3) for name in MEASURED)
        table.add(f"{entry['guidance']:g}", *cells, str(entry["psnr_to_vae"]["n"]))
    return f"{table}\nnoise from N(0, 1) has a log-likelihood of {GAUSSIAN:.3f}"


def write_guidance_page(out: Path, results: dict[str, Any]) -> Path:
    """Write DIR/index.html of eval.inversion_guidance."""
    charts = []
    for name in MEASURED:
        label = heading(name)
        entries = results["guidances"]
        points = [
            (e["guidance"], e[name]["mean"], f"w = {e['guidance']:g}, {estimate_words(e[name], digits=3)}")
            for e in entries
        ]
        charts.append(line_chart([Series(label, BLUE, points)], "guidance of the inversion w", label))
    return render_page(
        "inversion_guidance.html.j2",
        out,
        title="Guidance of a DDIM inversion",
        results=results,
        measures={name: heading(name) for name in MEASURED},
        charts=charts,
    )
