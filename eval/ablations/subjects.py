"""The edits on which parts are ablated: of scenes, or of other pictures by the same names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from data.jobs.kept import KeptFolder
from eval.ablations.bench import Bench
from eval.ablations.composed import Composed, composed_edits
from eval.ablations.prompts import scene_lengths
from eval.editors.few_steps import generator_of, has_unet
from eval.editors.references import Ceiling
from eval.scene_edits.edit_set import EditSet, sample_edit_set
from eval.scene_edits.figures import changed_types
from eval.scene_edits.judge import Judge
from eval.scene_edits.run import RunSetup, run_editors
from models.turboedit_pipeline import TurboEditPipeline


@dataclass(frozen=True)
class Subjects:
    """Edits, and what the single parts need of them.

    Args:
        edits: The edits of all parts.
        judge: Judge of them.
        lengths: Some of the edits with prompts of each length.
        composed: Edits with a second change each.
        left_out: Reasons why parts cannot be, by the part's name.
        lacking: Sentences on what is missing in all parts.
        most_missing: Words on it where more cases are missing than there are.
        about: Entries for results.json.
    """

    edits: EditSet
    judge: Judge
    lengths: Mapping[str, EditSet]
    composed: Composed
    left_out: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    most_missing: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def bench(self, pipeline: TurboEditPipeline, batch: int, kept: KeptFolder) -> Bench:
        """The bench on which all parts stand; of scenes it says which kinds of edits the generator itself can make."""
        setup = RunSetup(pipeline.backbone, self.judge, batch, kept)
        kinds = tuple(dict.fromkeys(self.edits.kinds))
        if self.edits.scenes:
            ceiling = Ceiling(generator_of(pipeline))
            kinds = changed_types(run_editors([ceiling], self.edits, setup, "what the generator can do")["ceiling"])
        references = self.judge.references(self.edits, setup.backbone)
        return Bench(setup, self.edits, references, kinds, pipeline, self.lengths)


def without_network(pipeline: TurboEditPipeline) -> dict[str, str]:
    """Reasons why parts cannot be with this generator, by the part's name."""
    left_out = {}
    if 1 not in pipeline.step_counts or not has_unet(pipeline.backbone):
        left_out["one_step"] = "needs an encoder that inverts in one step, and a UNet, whose attention can be frozen"
    if pipeline.backbone.schedule.reaches_pure_noise:
        left_out["renoise"] = "ReNoise predicts noise, and this schedule ends in pure noise"
    return left_out


def scene_subjects(
    split: str, num: int, seed: int, judge: Judge, captioner: str | None, about: Mapping[str, Any], device: torch.device
) -> Subjects:
    """`num` scenes' edits of each kind; without a captioner there are no instructions."""
    edits = sample_edit_set(split, num, seed, device)
    composed = composed_edits(num, seed, device)
    left_out = {} if captioner else {"instructions": "needs a captioner that can rewrite captions (--captioner)"}
    return Subjects(
        edits, judge, scene_lengths(edits), composed, left_out, about={"split": split, "seed": seed, **about}
    )
