"""The bench of `eval.ablation`: what all of its parts stand on, and what each of them hands back."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from data.pages.page import Picture, picture_uri
from data.world.edits import Edit
from eval.claims.turboedit import Comparison
from eval.editors.editor import Editor
from eval.metrics.measures import MEASURES
from eval.metrics.pixels import Estimate
from eval.scene_edits.edit_set import EditSet, edit_set
from eval.scene_edits.judge import Judge, References, Verdict
from eval.scene_edits.trial import Trial, pixels, try_editor
from models.turboedit_pipeline import TurboEditPipeline

Values = Mapping[str, Sequence[float]]
"""By measure one value an edit; nan where an edit has none."""


@dataclass(frozen=True)
class Setting:
    """One setting of an ablation, what was measured of each edit in it, and the edited pictures where it has such.

    The settings of a part share their edits.
    """

    name: str
    values: Values
    pictures: Sequence[np.ndarray] = ()

    def estimate(self, measure: str) -> Estimate:
        """Mean of a measure; nan where this setting does not have it."""
        return Estimate.of(self.values.get(measure, ()))

    def to_dict(self) -> dict[str, Any]:
        """JSON: an estimate for each measure."""
        return {"setting": self.name, **{measure: self.estimate(measure).to_dict() for measure in self.values}}


@dataclass(frozen=True)
class Strip:
    """A row of pictures of one edit."""

    words: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Part:
    """One ablation.

    Args:
        name, title, words: for results.json, for people, and what was done.
        measures: columns of the table, in order.
        settings: its rows.
        edits: what the values belong to, in order.
        evidence: comparisons by the id of the claim that they test.
        charts: drawings.
        columns, strips: headings and rows of pictures.
    """

    name: str
    title: str
    words: str
    measures: tuple[str, ...]
    settings: tuple[Setting, ...]
    edits: tuple[Edit, ...]
    evidence: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)
    charts: tuple[Markup, ...] = ()
    columns: tuple[str, ...] = ()
    strips: tuple[Strip, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each setting and edit."""
        return [
            {
                "part": self.name,
                "setting": setting.name,
                "index": index,
                "kind": edit.kind,
                "instruction": edit.instruction,
                **{measure: values[index] for measure, values in setting.values.items()},
            }
            for setting in self.settings
            for index, edit in enumerate(self.edits)
        ]


@dataclass(frozen=True)
class Bench:
    """An encoder, its judge and the rules that all parts share.

    Args:
        edits, references: test edits of all kinds, which take turns, and what the judge compares them with.
        kinds: that count for `changed`, as the generator itself can make them.
        batch: images at a time.
        progress: told how many edits of a trial are done, and its name.
    """

    pipeline: TurboEditPipeline
    judge: Judge
    edits: EditSet
    references: References
    kinds: tuple[str, ...]
    batch: int
    progress: Callable[[int, str], object] = lambda count, name: None

    def of_kinds(self, kinds: Collection[str]) -> tuple[EditSet, References]:
        """The edits of some kinds, with what the judge compares them with."""
        edits = edit_set([edit for edit in self.edits.edits if edit.kind in kinds], self.pipeline.unet.device)
        return edits, self.judge.references(edits, self.pipeline.backbone)

    def run(
        self,
        editor: Editor,
        edits: EditSet,
        references: References,
        strengths: Sequence[float] = (1.0,),
        *,
        reconstructed: bool = False,
        with_masks: bool = False,
    ) -> Trial:
        """`editor` on `edits`, inverted once and edited at every one of `strengths`."""
        return try_editor(
            editor,
            edits,
            references,
            self.judge,
            strengths,
            self.batch,
            self.pipeline.backbone,
            num_reconstructions=len(edits) if reconstructed else 0,
            with_masks=with_masks,
            progress=lambda count: self.progress(count, editor.name),
        )

    def setting(self, name: str, trial: Trial, strength: float = 1.0, further: Values | None = None) -> Setting:
        """What a trial measured at one strength, and `further` values by measure."""
        return self.judged(name, trial.verdicts[strength], trial.images[strength], further)

    def judged(
        self, name: str, verdicts: Sequence[Verdict], pictures: Sequence[np.ndarray], further: Values | None = None
    ) -> Setting:
        """A setting of edited pictures and what the judge says of them; `happened` is `changed` of every kind."""
        values: dict[str, Sequence[float]] = {
            "changed": [verdict.changed if verdict.kind in self.kinds else math.nan for verdict in verdicts],
            "happened": [verdict.changed for verdict in verdicts],
        }
        for measure in ("kept", "psnr_outside", "psnr_inside", "clip", "structure"):
            values[measure] = [getattr(verdict, measure) for verdict in verdicts]
        return Setting(name, {**(further or {}), **values}, pictures)


def difference(measure: str, better: Setting, worse: Setting, margin: float = 0.0) -> Comparison:
    """That `better` has more of a measure than `worse`, by at least `margin` (of the unscaled measure)."""
    about = MEASURES[measure]
    pairs = zip(better.values[measure], worse.values[measure], strict=True)
    words = f"{about.title}: {better.name}, less {worse.name}"
    words += f", less {about.scale * margin:g} {about.unit}" if margin else ""
    return Comparison(words, about.unit, [about.scale * (a - b - margin) for a, b in pairs])


def above(measure: str, setting: Setting, bound: float) -> Comparison:
    """That a setting has more of a measure than `bound`."""
    about = MEASURES[measure]
    words = f"{about.title}: {setting.name}, less {about.scale * bound:g} {about.unit}"
    return Comparison(words.rstrip(), about.unit, [about.scale * (value - bound) for value in setting.values[measure]])


def last_reconstructions(trial: Trial) -> dict[str, Sequence[float]]:
    """PSNR of each image's last reconstruction: to the image, and to the VAE's round trip."""
    last = max(int(row["step"]) for row in trial.reconstruction_rows)
    rows = [row for row in trial.reconstruction_rows if row["step"] == last]
    return {measure: [float(row[measure]) for row in rows] for measure in ("psnr", "psnr_to_vae")}


def edit_strips(edits: EditSet, shown: Sequence[int], settings: Sequence[Setting]) -> tuple[Strip, ...]:
    """For each of the `shown` edits source, true edit and its picture in every setting, with what was found of it."""
    sources, truths = pixels(edits.sources), pixels(edits.truths)
    return tuple(
        Strip(
            edits.edits[index].instruction,
            (
                Picture(picture_uri(sources[index])),
                Picture(picture_uri(truths[index])),
                *(_picture(setting, index) for setting in settings),
            ),
        )
        for index in shown
        if index < len(edits)
    )


def strip_columns(settings: Sequence[Setting]) -> tuple[str, ...]:
    """Headings of `edit_strips`."""
    return ("source", "true edit", *(setting.name for setting in settings))


def _picture(setting: Setting, index: int) -> Picture:
    changed, outside = setting.values["changed"][index], setting.values["psnr_outside"][index]
    words = [] if math.isnan(changed) else ["✓" if changed else "✗"]
    words += [] if math.isnan(outside) else [f"{outside:.0f} dB"]
    return Picture(
        picture_uri(setting.pictures[index]), " ".join(words), None if math.isnan(changed) else bool(changed)
    )
