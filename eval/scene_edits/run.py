"""Runs of editors on sets of edits: inverted once, edited at every strength, scored and metered, and kept."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.jobs.kept import KeptFolder, digest
from data.world.edits import EDIT_KINDS
from eval.editors.editor import (
    Editor,
    EditRequest,
    ReconstructingEditor,
    TargetFittingEditor,
    measured,
    settings_of,
)
from eval.harness.fingerprints import backbone_settings
from eval.harness.precision import beside_float32
from eval.reconstructions.fidelity import reconstruction_rows, round_trip
from eval.reconstructions.noise import Noises, collect_noises, noise_figures
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import EditJudge, References
from eval.scene_edits.result import EditorResult, keep_result, pixels, read_result
from models.backbone import Backbone, loaded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSetup:
    """Settings that the runs of all editors share.

    Args:
        backbone: The model whose VAE sets the ceiling.
        judge: Scores of edited pictures.
        batch: Images at a time; an editor that fits something to each target gets one.
        kept: Folder of finished results.
        num_edits: Most edits of each kind that an editor gets, by its name; all by default. Sets begin alike, so these
            are edits that the others see too.
        unreconstructed: Editors whose reconstructions are not measured, since their inversion is another editor's.
        masked: Editors that are given the true mask of each edit.
    """

    backbone: Backbone
    judge: EditJudge
    batch: int
    kept: KeptFolder
    num_edits: Mapping[str, int] = field(default_factory=dict)
    unreconstructed: Sequence[str] = ()
    masked: Sequence[str] = ()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The networks that decide every result, and what decides its seconds and costs, as JSON."""
        settings = {
            "backbone": backbone_settings(self.backbone),
            "judge": self.judge.settings,
            "batch": self.batch,
            "device": loaded(self.backbone.network, "network").device.type,
        }
        named = beside_float32(self.backbone.network.dtype)
        return settings | {"dtype": named[0]} if named else settings


def kept_results(out: Path) -> KeptFolder:
    """Open the folder of a report's finished work, DIR/kept; that of an older version is not read.

    The names of its pieces stand for all options and weights that decide them. Code is not part of it: after a change
    of a method, delete the folder.
    """
    if (old := out / "trials").is_dir():
        logger.warning("%s was kept by an older version and is not read: its edits are made again; delete it", old)
    return KeptFolder(out / "kept")


def run_editors(
    editors: Sequence[Editor],
    edits: EditSet,
    setup: RunSetup,
    title: str,
    *,
    num_reconstructions: int = 0,
    strengths: Mapping[str, float] | None = None,
    judged_as: EditSet | None = None,
) -> dict[str, EditorResult]:
    """Run every editor on the edits, but those whose results are kept; other processes may take some of them.

    Args:
        editors: Editors with different names.
        title: Words before the progress bar.
        num_reconstructions: How many sources are reconstructed, to the next whole batch.
        strengths: One strength for each editor, in the place of its sweep.
        judged_as: The same edits with the captions that results are compared with; by default those of `edits`.
    """
    runs = {}
    for editor in editors:
        part = edits.first(setup.num_edits.get(editor.name, len(edits)) * len(EDIT_KINDS))
        points = editor.strengths if strengths is None else (strengths[editor.name],)
        count = 0 if editor.name in setup.unreconstructed else num_reconstructions
        decided_by = (setup.settings, settings_of(editor), part.digest, points, count, editor.name in setup.masked)
        judged = None if judged_as is None else judged_as.digest
        runs[f"{editor.name}-{digest(*decided_by, judged)}"] = (editor, part, points, count)
    references: References | None = None
    sizes = {piece: len(part) * len(points) for piece, (_, part, points, _) in runs.items()}
    for piece in setup.kept.missing(sizes, title, "edit"):
        editor, part, points, count = runs[piece]
        logger.debug("%s: %s", title, editor.name)
        if references is None:
            references = setup.judge.references(judged_as or edits, setup.backbone)
        # What is fitted to a target is kept for its strengths: of one image at a time it fits into memory.
        alone = isinstance(editor, TargetFittingEditor)
        found = run_editor(
            editor,
            part,
            references,
            replace(setup, batch=1) if alone else setup,
            points,
            num_reconstructions=count,
            with_masks=editor.name in setup.masked,
            progress=setup.kept.tick,
        )
        keep_result(setup.kept, piece, found)
    return {editor.name: read_result(setup.kept, piece) for piece, (editor, *_) in runs.items()}


@torch.no_grad()
def run_editor(
    editor: Editor,
    edits: EditSet,
    references: References,
    setup: RunSetup,
    strengths: Sequence[float],
    *,
    num_reconstructions: int = 0,
    with_masks: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> EditorResult:
    """Run one editor at each of `strengths` on all edits, a batch at a time; nothing is kept.

    Args:
        references: What the edits are compared with.
        num_reconstructions: How many sources are reconstructed, to the next whole batch, if the editor can.
        with_masks: Give the editor the true masks.
        progress: Function that is told how many edits of one strength are done.
    """
    result = EditorResult(editor.name, tuple(strengths))
    meter = measured(editor)
    noises: Noises = {}
    done = 0
    for part in edits.batches(setup.batch):
        compared = references.part(done, len(part))
        inversion = meter.invert(part.sources, part.source_prompts)
        collect_noises(noises, editor.name, inversion)
        request = EditRequest(
            part.target_prompts,
            instruction=tuple(edit.instruction for edit in part.edits),
            mask=part.masks.float() if with_masks else None,
            truth=part.truths,
        )
        meter.fit_target(inversion, request)
        for strength in strengths:
            images = meter.edit(inversion, replace(request, strength=strength))
            result.edit_costs.setdefault(strength, []).append(meter.fit_costs[-1] + meter.edit_costs[-1])
            result.scores.setdefault(strength, []).extend(setup.judge.scores(part, compared, images))
            result.images.setdefault(strength, []).extend(pixels(images))
            progress(len(part))
        if done < num_reconstructions and isinstance(editor, ReconstructingEditor):
            trip = round_trip(setup.backbone, part.sources)
            keys = [f"{index:06d}" for index in range(done, done + len(part))]
            found, pictures = reconstruction_rows(setup.backbone, editor, inversion, trip, {}, keys)
            result.reconstruction_rows += found
            for step, picture in enumerate(pictures, start=1):
                result.reconstructions.setdefault(step, []).extend(pixels(picture))
        done += len(part)
    result.invert_costs = meter.invert_costs
    result.noises = noise_figures(noises)
    return result
