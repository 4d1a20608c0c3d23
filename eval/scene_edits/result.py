"""Results of one editor on a set of edits, and how they are kept in a folder."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from data.jobs.kept import KeptFolder
from eval.editors.editor import Cost
from eval.metrics.pixels import Estimate
from eval.reconstructions.fidelity import Row
from eval.reconstructions.noise import NoiseFigures
from eval.scene_edits.judge import EditScores
from eval.scene_edits.sweeps import Sweep
from models.pictures import to_uint8

_PICTURES = ".npz"


@dataclass
class EditorResult:
    """Pictures, scores and costs of an editor on N edits.

    Args:
        name: Name of the editor.
        strengths: The S strengths that were tried.
        invert_costs: One cost a batch.
        edit_costs: One cost a batch by strength, with all that its targets cost.
        scores: One a row by strength.
        images: One picture a row by strength, uint8 [64, 64, 3].
        noises: The entries `noise` of results.json, by name and timestep.
        reconstruction_rows: Rows of eval.reconstructions.fidelity, if they were asked for.
        reconstructions: One picture a row by step, if they were asked for.
    """

    name: str
    strengths: tuple[float, ...]
    invert_costs: list[Cost] = field(default_factory=list)
    edit_costs: dict[float, list[Cost]] = field(default_factory=dict)
    scores: dict[float, list[EditScores]] = field(default_factory=dict)
    images: dict[float, list[np.ndarray]] = field(default_factory=dict)
    noises: NoiseFigures = field(default_factory=dict)
    reconstruction_rows: list[Row] = field(default_factory=list)
    reconstructions: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def estimate(self, strength: float, measure: str, kinds: Sequence[str] | None = None) -> Estimate:
        """Mean of one measure at a strength, over edits of the given kinds (default: all)."""
        rows = [row for row in self.scores[strength] if kinds is None or row.kind in kinds]
        return Estimate.of_measure(measure, (getattr(row, measure) for row in rows))

    def sweep(self, changed_types: Sequence[str]) -> Sweep:
        """Success and PSNR outside the mask of every edit at every strength; success counts in `changed_types` only."""
        rows = [self.scores[strength] for strength in self.strengths]
        changed = [[found.changed if found.kind in changed_types else np.nan for found in row] for row in rows]
        return Sweep(np.array(changed), np.array([[found.psnr_outside for found in row] for row in rows]))


def pixels(images: Tensor) -> list[np.ndarray]:
    """Images [B, 3, H, W] in [-1, 1] as uint8 [H, W, 3] each."""
    return list(to_uint8(images).cpu().permute(0, 2, 3, 1).numpy())


def keep_result(kept: KeptFolder, piece: str, result: EditorResult) -> None:
    """Keep a finished result as the piece of that name."""
    pictures = {f"edit {strength}": np.stack(found) for strength, found in result.images.items()}
    pictures |= {f"step {step}": np.stack(found) for step, found in result.reconstructions.items()}
    fields = {entry.name: getattr(result, entry.name) for entry in dataclasses.fields(result)}
    record = {name: value for name, value in fields.items() if name not in ("images", "reconstructions")}
    for name in ("edit_costs", "scores"):
        record[name] = {str(strength): [asdict(row) for row in rows] for strength, rows in fields[name].items()}
    record["invert_costs"] = [asdict(cost) for cost in result.invert_costs]
    kept.keep(piece, record, {_PICTURES: lambda path: write_arrays(path, pictures)})


def read_result(kept: KeptFolder, piece: str) -> EditorResult:
    """Read the result that `keep_result` has kept."""
    record = kept.read(piece)
    pictures = {key: list(array) for key, array in read_arrays(kept.path(piece, _PICTURES)).items()}
    strengths = tuple(record["strengths"])
    keys = [str(strength) for strength in strengths]
    return EditorResult(
        record["name"],
        strengths,
        [Cost(**cost) for cost in record["invert_costs"]],
        {s: [Cost(**cost) for cost in record["edit_costs"][key]] for s, key in zip(strengths, keys, strict=True)},
        {s: [EditScores(**row) for row in record["scores"][key]] for s, key in zip(strengths, keys, strict=True)},
        {s: pictures[f"edit {key}"] for s, key in zip(strengths, keys, strict=True)},
        record["noises"],
        record["reconstruction_rows"],
        {int(key.split()[1]): found for key, found in pictures.items() if key.startswith("step ")},
    )


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name, compressed."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote."""
    with np.load(path) as arrays:
        return dict(arrays.items())
