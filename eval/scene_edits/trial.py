"""One editor on a set of edits: inverted once, edited at every strength, judged and metered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from eval.editors.editor import Cost, Editor, EditRequest, ReconstructingEditor, measured
from eval.metrics.pixels import Estimate
from eval.reconstructions.fidelity import Row, reconstruction_rows, round_trip
from eval.reconstructions.noise import NoiseFigures, Noises, collect_noises, noise_figures
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import Judge, References, Verdict
from eval.scene_edits.sweeps import Sweep
from models.backbone import Backbone
from models.pictures import to_uint8


@dataclass
class Trial:
    """What came of an editor's work on N edits.

    Args:
        name: of the editor.
        strengths: the S strengths that were tried.
        invert_costs, edit_costs: one cost a batch; edits by strength, each with all that its target costs.
        verdicts, images: by strength, one a row; images are uint8 [64, 64, 3].
        noises: the entries `noise` of results.json, by name and timestep.
        reconstruction_rows, reconstructions: rows of eval.fidelity, and by step one picture a row; if asked for.
    """

    name: str
    strengths: tuple[float, ...]
    invert_costs: list[Cost] = field(default_factory=list)
    edit_costs: dict[float, list[Cost]] = field(default_factory=dict)
    verdicts: dict[float, list[Verdict]] = field(default_factory=dict)
    images: dict[float, list[np.ndarray]] = field(default_factory=dict)
    noises: NoiseFigures = field(default_factory=dict)
    reconstruction_rows: list[Row] = field(default_factory=list)
    reconstructions: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def estimate(self, strength: float, measure: str, kinds: Sequence[str] | None = None) -> Estimate:
        """Mean of one measure at a strength, over edits of the given kinds (default: all)."""
        rows = [v for v in self.verdicts[strength] if kinds is None or v.kind in kinds]
        return Estimate.of(getattr(row, measure) for row in rows)

    def sweep(self, changed_types: Sequence[str]) -> Sweep:
        """Success and PSNR outside the mask of every edit at every strength; success counts in `changed_types` only."""
        rows = [self.verdicts[strength] for strength in self.strengths]
        changed = [[v.changed if v.kind in changed_types else np.nan for v in row] for row in rows]
        return Sweep(np.array(changed), np.array([[v.psnr_outside for v in row] for row in rows]))


def pixels(images: Tensor) -> list[np.ndarray]:
    """Images [B, 3, H, W] in [-1, 1] as uint8 [H, W, 3] each."""
    return list(to_uint8(images).cpu().permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def try_editor(
    editor: Editor,
    edits: EditSet,
    references: References,
    judge: Judge,
    strengths: Sequence[float],
    batch: int,
    backbone: Backbone,
    num_reconstructions: int = 0,
    with_masks: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> Trial:
    """`editor` at each of `strengths` on all `edits`, `batch` at a time.

    Args:
        backbone: for reconstructions.
        num_reconstructions: of how many sources they are measured, to the next whole batch, if the editor makes any.
        with_masks: the editor is given the true masks.
        progress: told how many edits of one strength are done.
    """
    trial = Trial(editor.name, tuple(strengths))
    meter = measured(editor)
    noises: Noises = {}
    done = 0
    for part in edits.batches(batch):
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
            trial.edit_costs.setdefault(strength, []).append(meter.fit_costs[-1] + meter.edit_costs[-1])
            trial.verdicts.setdefault(strength, []).extend(judge.verdicts(part, compared, images))
            trial.images.setdefault(strength, []).extend(pixels(images))
            progress(len(part))
        if done < num_reconstructions and isinstance(editor, ReconstructingEditor):
            trip = round_trip(backbone, part.sources)
            keys = [f"{index:06d}" for index in range(done, done + len(part))]
            found, pictures = reconstruction_rows(backbone, editor, inversion, trip, {}, keys)
            trial.reconstruction_rows += found
            for step, picture in enumerate(pictures, start=1):
                trial.reconstructions.setdefault(step, []).extend(pixels(picture))
        done += len(part)
    trial.invert_costs = meter.invert_costs
    trial.noises = noise_figures(noises)
    return trial
