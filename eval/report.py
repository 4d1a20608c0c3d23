"""The page of eval.scenes: tables with standard errors, curves and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.scenes import EDIT_KINDS
from eval.editors.titles import COLOURS, Figures, Picture, number, picture_uri, render, title_of
from eval.reconstructions.page import reconstruction_chart
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.page import edit_gallery, gallery_columns, sweep_chart
from eval.scene_edits.trial import Trial, pixels

_TEMPLATE = "report.html.j2"
_GALLERY_ROWS = 8


def write_scene_report(out: Path, results: Figures, edits: EditSet, trials: Mapping[str, Trial]) -> Path:
    """The page of eval.scenes, DIR/index.html."""
    chosen = results["strengths"]
    return render(
        _TEMPLATE,
        out,
        title="Edits of scenes against the truth",
        results=results,
        tiles=_tiles(results),
        sweep_chart=sweep_chart(results, COLOURS),
        kinds=[{"kind": kind, "title": kind.replace("_", " ")} for kind in EDIT_KINDS],
        gallery_columns=gallery_columns(trials),
        gallery=edit_gallery(edits, trials, chosen),
        **_reconstruction_parts(results, _scene_reconstructions(edits, trials)),
    )


def _tiles(results: Figures) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the first things to know about the encoder."""
    tiles = []
    steps = results["reconstruction"].get("turboedit", {}).get("psnr_to_vae_by_step")
    if steps:
        tiles.append((number(steps[-1]["mean"], 1), "dB", f"PSNR to the VAE's round trip after {len(steps)} steps"))
    ours = results["edits"]["turboedit"]
    tiles.append((number(100 * ours["changed"]["mean"], 0), "%", "of the edits happened"))
    tiles.append((number(100 * ours["kept"]["mean"], 0), "%", "of the other attributes were kept"))
    for baseline in ("ddim", "sdedit"):
        found = results["equal_success"]["turboedit"][baseline]
        if found:
            gain = f"{found['gain']['mean']:+.1f}"
            tiles.append((gain, "dB", f"outside the edit at equal success, against {title_of(baseline)}"))
    return tiles


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
    columns = ["image", "VAE"]
    if rows:
        pictured = {name: len(pictures) for name, pictures in rows[0][1].items() if name not in ("image", "vae")}
        columns += [f"{title_of(name)}, {s}" for name, steps in pictured.items() for s in _shown_steps(name, steps)]
    gallery = [
        {
            "text": caption,
            "pictures": [
                Picture(picture_uri(pictures[step - 1]))
                for name, pictures in row.items()
                for step in _shown_steps(name, len(pictures))
            ],
        }
        for caption, row in rows
    ]
    return {
        "reconstruction_chart": reconstruction_chart(results),
        "reconstruction_columns": columns,
        "reconstruction_gallery": gallery,
    }


def _shown_steps(name: str, steps: int) -> list[int]:
    """All steps of ours, the last of a baseline."""
    return list(range(1, steps + 1)) if name == "turboedit" else [steps]
