"""Finished trials on disk, so that an evaluation that is started again does not repeat what is done.

A trial is kept under a digest of all that decides it: the models, the editor's settings, the edits, the strengths. Code
is not part of it: after a change of a method, delete the folder.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.jobs.files import whole, write_text
from eval.editors.editor import Cost
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import Verdict
from eval.scene_edits.trial import Trial

logger = logging.getLogger(__name__)


class TrialArchive:
    """Trials in a folder.

    Args:
        folder: NAME-DIGEST.json and .npz for each trial.
        about: what all of them share, as JSON: the backbone, the judges.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = about

    def settings(
        self, editor: Mapping[str, Any], edits: EditSet, strengths: tuple[float, ...], num_reconstructions: int
    ) -> dict[str, Any]:
        """All that decides a trial; `editor` as `settings_of` gives it."""
        pictures = hashlib.sha256(edits.sources.cpu().numpy().tobytes())
        pictures.update("\n".join(edits.target_prompts).encode())
        return {
            **self.about,
            "editor": editor,
            "edits": [len(edits), pictures.hexdigest()[:16]],
            "strengths": strengths,
            "num_reconstructions": num_reconstructions,
        }

    def read(self, name: str, settings: Mapping[str, Any]) -> Trial | None:
        """The trial of these settings if it is finished."""
        path = self._path(name, settings)
        if not path.is_file():
            return None
        logger.info("%s: read from %s", name, path)
        kept = json.loads(path.read_text(encoding="utf-8"))["trial"]
        with np.load(path.with_suffix(".npz")) as arrays:
            pictures = {key: list(array) for key, array in arrays.items()}
        strengths = tuple(kept["strengths"])
        keys = [str(strength) for strength in strengths]
        return Trial(
            kept["name"],
            strengths,
            [Cost(**cost) for cost in kept["invert_costs"]],
            {s: [Cost(**cost) for cost in kept["edit_costs"][key]] for s, key in zip(strengths, keys, strict=True)},
            {s: [Verdict(**row) for row in kept["verdicts"][key]] for s, key in zip(strengths, keys, strict=True)},
            {s: pictures[f"edit {key}"] for s, key in zip(strengths, keys, strict=True)},
            kept["noises"],
            kept["reconstruction_rows"],
            {int(key.split()[1]): found for key, found in pictures.items() if key.startswith("step ")},
        )

    def write(self, trial: Trial, settings: Mapping[str, Any]) -> None:
        """Keeps a finished trial."""
        path = self._path(trial.name, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = {f"edit {strength}": np.stack(found) for strength, found in trial.images.items()}
        pictures |= {f"step {step}": np.stack(found) for step, found in trial.reconstructions.items()}
        with whole(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **pictures)  # type: ignore[arg-type]
        fields = {field.name: getattr(trial, field.name) for field in dataclasses.fields(trial)}
        kept = {name: value for name, value in fields.items() if name not in ("images", "reconstructions")}
        write_text(path, json.dumps({"settings": settings, "trial": kept}, default=dataclasses.asdict))

    def _path(self, name: str, settings: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{name}-{digest}.json"
