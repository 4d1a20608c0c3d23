"""One self-contained HTML page of an evaluation: tables with standard errors, curves and pictures."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from data.scenes import EDIT_KINDS
from eval.charts import Series, line_chart
from eval.edit_set import EditSet
from eval.editors.suite import REFERENCES
from eval.trial import Trial, pixels

TITLES = {
    "turboedit": "TurboEdit",
    "turboedit_mask": "TurboEdit, auto mask",
    "turboedit_mean": "TurboEdit, mean alone",
    "turboedit_written": "TurboEdit, written captions",
    "turboedit_written_mean": "TurboEdit, written captions, mean alone",
    "ddim": "DDIM inversion",
    "ddpm": "DDPM inversion",
    "ddpm_residual": "DDPM + residual",
    "sdedit": "SDEdit",
    "identity": "identity (VAE)",
    "truth": "true edit (VAE)",
    "ceiling": "ceiling (fresh noise)",
    "vae": "VAE round trip",
}
COLOURS = {
    "turboedit": "#0b5fa5",
    "turboedit_mask": "#13a3a3",
    "turboedit_written": "#5b8def",
    "ddim": "#e07b1f",
    "ddpm": "#9a5bc2",
    "ddpm_residual": "#d6478f",
    "sdedit": "#7d8a3c",
}
_GREY = "#888888"
_NOT_PICTURED = ("identity", "truth")
_EXACT = 60.0
"""dB from which two pictures are equal at 8 bits."""
_GALLERY_PER_KIND = 2
_GALLERY_ROWS = 8

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture in a gallery: a data URI, and words under it."""

    uri: str
    note: str = ""
    good: bool | None = None


def write_scene_report(out: Path, results: Figures, edits: EditSet, trials: Mapping[str, Trial]) -> Path:
    """The page of eval.scenes, DIR/index.html."""
    chosen = results["strengths"]
    return _render(
        out,
        title="Edits of scenes against the truth",
        results=results,
        tiles=_tiles(results),
        sweep_chart=_sweep_chart(results),
        kinds=[{"kind": kind, "title": kind.replace("_", " ")} for kind in EDIT_KINDS],
        gallery_columns=["source", "true edit", *(title_of(name) for name in trials if name not in _NOT_PICTURED)],
        gallery=_edit_gallery(edits, trials, chosen),
        **_reconstruction_parts(results, _scene_reconstructions(edits, trials)),
    )


def write_reconstruction_report(
    out: Path, results: Figures, rows: Sequence[Mapping[str, list[np.ndarray]]], captions: Sequence[str]
) -> Path:
    """The page of eval.reconstruction, DIR/index.html.

    Args:
        rows: for each pictured image "image", "vae" (one picture each) and the editors' reconstructions by step.
    """
    parts = _reconstruction_parts(results, list(zip(captions, rows, strict=True)))
    return _render(out, title="Reconstruction by inversion", results=results, tiles=_tiles(results), **parts)


def title_of(name: str) -> str:
    """An editor's name as people read it."""
    return TITLES.get(name, name)


def _render(out: Path, **values: Any) -> Path:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"figure": figure, "decibels": decibels, "title_of": title_of, "number": number}
    values = {"gallery": [], "references": REFERENCES, "colours": COLOURS, **values}
    page = out / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(templates.get_template("report.html.j2").render(values), encoding="utf-8")
    return page


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def figure(estimate: Figures | None, scale: float = 1.0, digits: int = 1) -> Markup:
    """Mean and standard error of an estimate's dict."""
    if estimate is None or estimate["mean"] is None:
        return Markup("–")
    error = "" if estimate["se"] is None else f" <small>± {scale * estimate['se']:.{digits}f}</small>"
    return Markup(f"{scale * estimate['mean']:.{digits}f}{error}")


def decibels(estimate: Figures | None) -> Markup:
    """Mean and standard error of a PSNR; "exact" where pictures are equal."""
    if estimate is not None and estimate["mean"] is not None and estimate["mean"] >= _EXACT:
        return Markup("exact")
    return figure(estimate)


def _tiles(results: Figures) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the first things to know about the encoder."""
    tiles = []
    steps = results["reconstruction"].get("turboedit", {}).get("psnr_to_vae_by_step")
    if steps:
        tiles.append((number(steps[-1]["mean"], 1), "dB", f"PSNR to the VAE's round trip after {len(steps)} steps"))
    if "edits" in results:
        ours = results["edits"]["turboedit"]
        tiles.append((number(100 * ours["changed"]["mean"], 0), "%", "of the edits happened"))
        tiles.append((number(100 * ours["kept"]["mean"], 0), "%", "of the other attributes were kept"))
        for baseline in ("ddim", "sdedit"):
            found = results["equal_success"]["turboedit"][baseline]
            if found:
                gain = f"{found['gain']['mean']:+.1f}"
                tiles.append((gain, "dB", f"outside the edit at equal success, against {title_of(baseline)}"))
    return tiles


def _sweep_chart(results: Figures) -> Any:
    series = []
    for name, points in results["sweeps"].items():
        shown = [p for p in points if p["psnr_outside"]["mean"] is not None and p["changed"]["mean"] is not None]
        line = [
            (
                p["psnr_outside"]["mean"],
                100 * p["changed"]["mean"],
                f"strength {p['strength']:g}, {100 * p['changed']['mean']:.0f} % changed, "
                f"{p['psnr_outside']['mean']:.1f} dB, {100 * p['kept']['mean']:.0f} % kept",
            )
            for p in shown
        ]
        at = [p["strength"] for p in shown].index(results["strengths"][name]) if shown else None
        series.append(Series(title_of(name), COLOURS.get(name, _GREY), line, at))
    return line_chart(series, "PSNR outside the edit (dB): what is kept", "edits that happened (%)")


def _edit_gallery(edits: EditSet, trials: Mapping[str, Trial], chosen: Mapping[str, float]) -> list[dict[str, Any]]:
    """The first edits of each kind: instruction, and source, true edit and every editor's result."""
    sources, truths = pixels(edits.sources), pixels(edits.truths)
    rows = []
    for kind in EDIT_KINDS:
        for index in [i for i, found in enumerate(edits.kinds) if found == kind][:_GALLERY_PER_KIND]:
            pictures = [Picture(_uri(sources[index])), Picture(_uri(truths[index]))]
            for name, trial in trials.items():
                if name in _NOT_PICTURED:
                    continue
                verdict = trial.verdicts[chosen[name]][index]
                note = f"{'✓' if verdict.changed else '✗'} kept {100 * verdict.kept:.0f} %"
                image = trial.images[chosen[name]][index]
                pictures.append(Picture(_uri(image), note, bool(verdict.changed)))
            rows.append({"kind": kind.replace("_", " "), "text": edits.edits[index].instruction, "pictures": pictures})
    return rows


def _scene_reconstructions(
    edits: EditSet, trials: Mapping[str, Trial]
) -> list[tuple[str, Mapping[str, list[np.ndarray]]]]:
    """Captions and pictures of the first sources: the image, the VAE's round trip, each editor's steps."""
    made = min((len(p) for trial in trials.values() for p in trial.reconstructions.values()), default=0)
    images = pixels(edits.sources[: min(_GALLERY_ROWS, made)])
    identity = trials["identity"].images[trials["identity"].strengths[0]]
    rows: list[tuple[str, Mapping[str, list[np.ndarray]]]] = []
    for index, image in enumerate(images):
        row = {"image": [image], "vae": [identity[index]]}
        for name, trial in trials.items():
            if trial.reconstructions:
                row[name] = [pictures[index] for _, pictures in sorted(trial.reconstructions.items())]
        rows.append((edits.source_prompts[index], row))
    return rows


def _reconstruction_parts(
    results: Figures, rows: Sequence[tuple[str, Mapping[str, list[np.ndarray]]]]
) -> dict[str, Any]:
    """Chart, columns and pictures of the section on reconstruction."""
    editors = {name: found for name, found in results["reconstruction"].items() if name != "vae"}
    series = []
    for name, found in editors.items():
        steps = [entry["mean"] for entry in found["psnr_to_vae_by_step"]]
        points = [(step, value, f"step {step}, {value:.1f} dB") for step, value in enumerate(steps, start=1)]
        # An exact reconstruction has no meaningful place on a scale of decibels.
        series.append(Series(title_of(name), COLOURS.get(name, _GREY), [p for p in points if p[1] < _EXACT]))
    columns = ["image", "VAE"]
    if rows:
        pictured = {name: len(pictures) for name, pictures in rows[0][1].items() if name not in ("image", "vae")}
        columns += [f"{title_of(name)}, {s}" for name, steps in pictured.items() for s in _shown_steps(name, steps)]
    gallery = [
        {
            "text": caption,
            "pictures": [
                Picture(_uri(pictures[step - 1]))
                for name, pictures in row.items()
                for step in _shown_steps(name, len(pictures))
            ],
        }
        for caption, row in rows
    ]
    return {
        "reconstruction_chart": line_chart(series, "steps", "PSNR to the VAE's round trip (dB)", whole_x=True),
        "reconstruction_columns": columns,
        "reconstruction_gallery": gallery,
    }


def _shown_steps(name: str, steps: int) -> list[int]:
    """All steps of ours, the last of a baseline."""
    return list(range(1, steps + 1)) if name == "turboedit" else [steps]


def _uri(image: np.ndarray) -> str:
    """A uint8 picture [H, W, 3] as the data URI of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
