"""The page of many-step editors: reconstruction under guidance, edits, and pictures of all on the same scenes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.scenes import EDIT_KINDS
from eval.editors.titles import Figures, Picture, picture_uri, render, title_of
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.page import edit_gallery, gallery_columns, sweep_chart
from eval.scene_edits.trial import Trial, pixels

_PALETTE = (
    "#0b5fa5",
    "#e07b1f",
    "#2a9d5c",
    "#9a5bc2",
    "#d6478f",
    "#13a3a3",
    "#7d8a3c",
    "#b8402f",
    "#5b8def",
    "#c2a300",
    "#6b4c3b",
    "#3b4553",
    "#8c6d1f",
    "#e5989b",
    "#4b7f52",
    "#a0c4ff",
    "#5e3c99",
    "#ff9f1c",
    "#2f4b7c",
    "#c9ada7",
)
_ROWS = 6


def write_many_step_report(out: Path, results: Figures, edits: EditSet, trials: Mapping[str, Trial]) -> Path:
    """The page of eval.many_step, DIR/index.html."""
    colours = colours_of(results["sweeps"])
    return render(
        "many_step.html.j2",
        out,
        title="Many-step editors on scenes",
        results=results,
        ours="stylediffusion",
        colours=colours,
        sweep_chart=sweep_chart(results, colours),
        kinds=[{"kind": kind, "title": kind.replace("_", " ")} for kind in EDIT_KINDS],
        gallery_columns=gallery_columns(trials),
        gallery=edit_gallery(edits, trials, results["strengths"]),
        **_reconstructions(edits, trials),
    )


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each editor; they come again after twenty."""
    return {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}


def _reconstructions(edits: EditSet, trials: Mapping[str, Trial]) -> dict[str, Any]:
    """Columns and pictures of the first sources: the image, its round trip, each editor's last step."""
    identity = trials["identity"].images[trials["identity"].strengths[0]]
    made = {
        name: trial.reconstructions[max(trial.reconstructions)]
        for name, trial in trials.items()
        if trial.reconstructions
    }
    seen = min((len(pictures) for pictures in made.values()), default=0)
    rows = []
    for index, image in enumerate(pixels(edits.first(min(_ROWS, seen)).sources)):
        pictures = [image, identity[index], *(pictures[index] for pictures in made.values())]
        rows.append({"text": edits.source_prompts[index], "pictures": [Picture(picture_uri(p)) for p in pictures]})
    return {
        "reconstruction_columns": ["image", "VAE", *(title_of(name) for name in made)],
        "reconstruction_gallery": rows,
    }
