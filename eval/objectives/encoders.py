"""What is measured of one trained encoder, as a record without pictures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.jobs.device import choose_device
from data.jobs.kept import KeptFolder
from eval.editors.catalogue import Command, available
from eval.editors.models import FewStepModel
from eval.harness.exports import load_scene_encoder
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import EditScores, load_judge
from eval.scene_edits.protocol import compare_edits
from eval.scene_edits.result import EditorResult
from eval.scene_edits.run import RunSetup, run_editors

OURS, BASELINE, CEILING = "turboedit_paper", "ddpm_residual", "ceiling"
"""The encoder, the strongest method without training, and the generator from fresh noise. The latter two are the same
for all encoders of a generator, so that they are measured once."""


@dataclass(frozen=True)
class SceneMeasurement:
    """Scenes on which encoders are measured, and by what.

    Args:
        num: Test edits of each of the nine kinds.
        num_validation: Validation edits of each kind, for the choice of strengths.
        num_reconstructions: Test scenes that are reconstructed, to the next whole batch.
        attributes: Folder of the attribute reader.
        clip: Folder of a CLIPModel; None leaves CLIP similarity out.
        batch: Images at a time.
        seed: Seed of the scenes.
    """

    num: int
    num_validation: int
    num_reconstructions: int
    attributes: Path
    clip: Path | None
    batch: int
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def measured_encoder(export: Path, scenes: SceneMeasurement, kept: KeptFolder, device: str) -> dict[str, Any]:
    """Edit and reconstruct scenes with an exported encoder.

    Args:
        export: Folder made by train.export.
        scenes: The scenes.
        kept: Folder of finished results of single editors, which all encoders share.
        device: Device by name, or auto.

    Returns:
        vae: PSNR of the VAE's round trip of each reconstructed scene. validation, test: records of `record_of` by
        editor.
    """
    place = choose_device(device)
    pipeline = load_scene_encoder(str(export), place, "float32")
    setup = RunSetup(pipeline.backbone, load_judge(scenes.attributes, scenes.clip, place), scenes.batch, kept)
    chosen = available(Command.SCENES, FewStepModel(pipeline)).choose((OURS, BASELINE))
    editors = [editor for editor in chosen if editor.name in (OURS, BASELINE, CEILING)]

    def run_split(
        edits: EditSet, split: str, num_reconstructions: int = 0, strengths: Mapping[str, float] | None = None
    ) -> dict[str, EditorResult]:
        return run_editors(editors, edits, setup, split, num_reconstructions=num_reconstructions, strengths=strengths)

    found = compare_edits(
        run_split,
        num=scenes.num,
        num_validation=scenes.num_validation,
        num_reconstructions=scenes.num_reconstructions,
        seed=scenes.seed,
        device=place,
    )
    return {
        "vae": [row["psnr"] for row in found.vae_rows(setup.backbone)],
        "validation": {name: record_of(result) for name, result in found.validation.items()},
        "test": {name: record_of(result) for name, result in found.test.items()},
    }


def record_of(result: EditorResult) -> dict[str, Any]:
    """An editor's result as JSON, without pictures and costs."""
    return {
        "name": result.name,
        "strengths": list(result.strengths),
        "scores": [[asdict(row) for row in result.scores[strength]] for strength in result.strengths],
        "noises": result.noises,
        "reconstruction_rows": result.reconstruction_rows,
    }


def result_of(record: Mapping[str, Any]) -> EditorResult:
    """The result of a `record_of`."""
    strengths = tuple(record["strengths"])
    scores = [[EditScores(**row) for row in rows] for rows in record["scores"]]
    return EditorResult(
        record["name"],
        strengths,
        scores=dict(zip(strengths, scores, strict=True)),
        noises=record["noises"],
        reconstruction_rows=record["reconstruction_rows"],
    )
