"""The bench of `eval.ablation`: what all of its parts stand on, and what each of them hands back."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup

from data.jobs.kept import KeptFolder, digest
from data.pages.page import Picture, picture_uri
from data.world.edits import Edit
from eval.claims.judging import Comparison
from eval.editors.editor import Editor
from eval.editors.turboedit import TurboEdit
from eval.metrics.measures import MEASURES
from eval.metrics.pixels import Estimate
from eval.scene_edits.edit_set import EditSet, edit_set
from eval.scene_edits.judge import EditScores, References
from eval.scene_edits.result import EditorResult, pixels, read_arrays, write_arrays
from eval.scene_edits.run import RunSetup, run_editor
from models.turboedit_pipeline import TurboEditPipeline

EditValues = Mapping[str, Sequence[float]]
"""By measure one value an edit; nan where an edit has none."""


@dataclass(frozen=True)
class Setting:
    """One setting of an ablation, what was measured of each edit in it, and the edited pictures where it has such.

    The settings of a part share their edits.
    """

    name: str
    values: EditValues
    pictures: Sequence[np.ndarray] = ()

    def estimate(self, measure: str) -> Estimate:
        """Mean of a measure; nan where this setting does not have it."""
        return Estimate.of_measure(measure, self.values.get(measure, ()))

    def to_dict(self) -> dict[str, Any]:
        """JSON: an estimate for each measure."""
        return {"setting": self.name, **{measure: self.estimate(measure).to_dict() for measure in self.values}}

    def by_kind(self, edits: Sequence[Edit]) -> dict[str, "Setting"]:
        """The values of each kind's edits, without pictures."""
        rows: dict[str, list[int]] = {}
        for row, edit in enumerate(edits):
            rows.setdefault(edit.kind, []).append(row)
        return {
            kind: Setting(self.name, {measure: [found[i] for i in chosen] for measure, found in self.values.items()})
            for kind, chosen in rows.items()
        }


@dataclass(frozen=True)
class PictureRow:
    """A row of pictures of one edit."""

    words: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Ablation:
    """One ablation.

    Args:
        name: Key of the ablation in results.json.
        title: Heading for people.
        words: Description of what was done.
        measures: Columns of the table, in order.
        settings: Rows of the table.
        edits: Edits that the values belong to, in order.
        evidence: Comparisons by the id of the claim that they test.
        comparisons: Differences that no claim of the paper names.
        charts: Drawings.
        columns: Headings of the rows of pictures.
        strips: Rows of pictures.
        kinds: Settings that are shown by the kind of the edit too.
    """

    name: str
    title: str
    words: str
    measures: tuple[str, ...]
    settings: tuple[Setting, ...]
    edits: tuple[Edit, ...]
    evidence: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    charts: tuple[Markup, ...] = ()
    columns: tuple[str, ...] = ()
    strips: tuple[PictureRow, ...] = ()
    kinds: tuple[Setting, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the ablation as JSON; estimates as dicts of mean, se, n, differences with their intervals."""
        settings = [setting.to_dict() for setting in self.settings]
        kinds = {
            setting.name: {kind: part.to_dict() for kind, part in setting.by_kind(self.edits).items()}
            for setting in self.kinds
        }
        differences = [
            {"words": found.words, "unit": found.unit, **found.interval.to_dict()} for found in self.comparisons
        ]
        return {
            "title": self.title,
            "n": len(self.edits),
            "settings": settings,
            "by_kind": kinds,
            "differences": differences,
        }

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
class Work:
    """Settings that are measured together: a piece of work that is kept and found again.

    Args:
        name: Beginning of the name under which they are kept.
        settings: All that decides their values beside what the bench says, as JSON.
        size: Number of pictures that are edited.
        measure: Function that measures them.
    """

    name: str
    settings: Any
    size: int
    measure: Callable[[], Sequence[Setting]]


@dataclass(frozen=True)
class Bench:
    """An encoder, its judge and the rules that all ablations share.

    Args:
        pipeline: The exported encoder.
        setup: What all runs share.
        edits: Test edits of all kinds, which take turns.
        references: What the judge compares them with.
        kinds: Kinds that count for `changed`, as the generator itself can make them.
    """

    pipeline: TurboEditPipeline
    setup: RunSetup
    edits: EditSet
    references: References
    kinds: tuple[str, ...]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All of the bench that decides values, as JSON."""
        return {**self.setup.settings, "encoder": TurboEdit(self.pipeline).settings, "kinds": self.kinds}

    def of_kinds(self, kinds: Collection[str]) -> tuple[EditSet, References]:
        """Return the edits of some kinds, with what the judge compares them with."""
        edits = edit_set([edit for edit in self.edits.edits if edit.kind in kinds], self.pipeline.unet.device)
        return edits, self.setup.judge.references(edits, self.pipeline.backbone)

    def measured(self, title: str, works: Sequence[Work]) -> list[tuple[Setting, ...]]:
        """Measure all settings but those that are kept; other processes may take some of them.

        Args:
            title: Words before the progress bar.
        """
        kept = self.setup.kept
        pieces = {f"{work.name}-{digest(self.settings, work.settings)}": work for work in works}
        assert len(pieces) == len(works), f"{title}: two pieces of work have the same settings"
        for piece in kept.missing({name: work.size for name, work in pieces.items()}, title, "edit"):
            _keep_settings(kept, piece, pieces[piece].measure())
        return [_read_settings(kept, piece) for piece in pieces]

    def run(
        self,
        editor: Editor,
        edits: EditSet,
        references: References,
        strengths: Sequence[float] = (1.0,),
        *,
        reconstructed: bool = False,
        with_masks: bool = False,
    ) -> EditorResult:
        """Run an editor, inverting once and editing at every one of `strengths`."""
        return run_editor(
            editor,
            edits,
            references,
            self.setup,
            strengths,
            num_reconstructions=len(edits) if reconstructed else 0,
            with_masks=with_masks,
            progress=self.setup.kept.tick,
        )

    def setting(
        self, name: str, result: EditorResult, strength: float = 1.0, further: EditValues | None = None
    ) -> Setting:
        """Make a setting of a result at one strength, and of `further` values by measure."""
        return self.judged(name, result.scores[strength], result.images[strength], further)

    def judged(
        self, name: str, scores: Sequence[EditScores], pictures: Sequence[np.ndarray], further: EditValues | None = None
    ) -> Setting:
        """A setting of edited pictures and what the judge says of them; `happened` is `changed` of every kind."""
        values: dict[str, Sequence[float]] = {
            "changed": [row.changed if row.kind in self.kinds else math.nan for row in scores],
            "happened": [row.changed for row in scores],
        }
        for measure in ("kept", "psnr_outside", "psnr_inside", "clip", "structure"):
            values[measure] = [getattr(row, measure) for row in scores]
        return Setting(name, {**(further or {}), **values}, pictures)


def _keep_settings(kept: KeptFolder, piece: str, settings: Sequence[Setting]) -> None:
    arrays = {str(index): np.stack(found.pictures) for index, found in enumerate(settings) if len(found.pictures)}
    record = [{"name": found.name, "values": found.values} for found in settings]
    kept.keep(piece, record, {".npz": lambda path: write_arrays(path, arrays)})


def _read_settings(kept: KeptFolder, piece: str) -> tuple[Setting, ...]:
    arrays = read_arrays(kept.path(piece, ".npz"))
    return tuple(
        Setting(found["name"], found["values"], list(arrays.get(str(index), ())))
        for index, found in enumerate(kept.read(piece))
    )


def difference(measure: str, better: Setting, worse: Setting, margin: float = 0.0) -> Comparison:
    """Test that `better` has more of a measure than `worse`, by at least `margin` (of the unscaled measure)."""
    about = MEASURES[measure]
    pairs = zip(better.values[measure], worse.values[measure], strict=True)
    words = f"{about.title}: {better.name}, less {worse.name}"
    words += f", less {about.scale * margin:g} {about.unit}" if margin else ""
    return Comparison(words, about.unit, [about.scale * (a - b - margin) for a, b in pairs])


def above(measure: str, setting: Setting, bound: float) -> Comparison:
    """Test that a setting has more of a measure than `bound`."""
    about = MEASURES[measure]
    words = f"{about.title}: {setting.name}, less {about.scale * bound:g} {about.unit}"
    return Comparison(words.rstrip(), about.unit, [about.scale * (value - bound) for value in setting.values[measure]])


def last_reconstructions(result: EditorResult) -> dict[str, Sequence[float]]:
    """PSNR of each image's last reconstruction: to the image, and to the VAE's round trip."""
    last = max(int(row["step"]) for row in result.reconstruction_rows)
    rows = [row for row in result.reconstruction_rows if row["step"] == last]
    return {measure: [float(row[measure]) for row in rows] for measure in ("psnr", "psnr_to_vae")}


def edit_strips(edits: EditSet, shown: Sequence[int], settings: Sequence[Setting]) -> tuple[PictureRow, ...]:
    """Rows of the `shown` edits: source, true edit and the picture in every setting, with what was found of it."""
    sources, truths = pixels(edits.sources), pixels(edits.truths)
    return tuple(
        PictureRow(
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
