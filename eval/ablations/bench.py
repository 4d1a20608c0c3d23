"""The bench of `eval.ablation`: what all of its parts stand on, and what each of them hands back."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from data.jobs.kept import KeptFolder, digest
from data.pages.page import Picture
from data.world.edits import Edit
from eval.claims.judging import Comparison
from eval.editors.editor import Editor
from eval.editors.turboedit import TurboEdit
from eval.metrics.attributes import AttributeReader
from eval.metrics.measures import MEASURES
from eval.metrics.pixels import Estimate
from eval.pie.gallery import small_uri
from eval.scene_edits.edit_set import EditSet, PictureEdit
from eval.scene_edits.judge import FURTHER, EditJudge, EditScores, References
from eval.scene_edits.result import EditorResult, pixels, read_arrays, write_arrays
from eval.scene_edits.run import RunSetup, run_editor
from models.turboedit_pipeline import TurboEditPipeline

EditValues = Mapping[str, Sequence[float]]
"""By measure one value an edit; nan where an edit has none."""

AnyEdit = Edit | PictureEdit

OF_EDITS = (
    "changed",
    "kept",
    "psnr_outside",
    "lpips_outside",
    "psnr_inside",
    "psnr_whole",
    "lpips_whole",
    "clip",
    "direction",
    "structure",
)
"""Columns of edits."""

PICTURED = 12
"""Edits, from the first on, whose pictures are kept: those that parts show are among them."""

_PICTURE_SIDE = 256
"""Pixels of a shown picture's longer side, at most."""


@dataclass(frozen=True)
class Setting:
    """One setting of an ablation, what was measured of each edit in it, and the first edited pictures if it has such.

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

    def measures(self, name: str) -> bool:
        """Whether any edit has a figure for a measure."""
        return any(not math.isnan(value) for value in self.values.get(name, ()))

    def by_kind(self, edits: Sequence[AnyEdit]) -> dict[str, "Setting"]:
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
    """A row of pictures of one edit, and what stands before it."""

    text: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Ablation:
    """One ablation.

    Args:
        name: Key of the ablation in results.json.
        title: Heading for people.
        words: Description of what was done.
        measures: Columns of the table, in order; those for which there is no figure at all are not shown.
        settings: Rows of the table.
        edits: Edits that the values belong to, in order.
        evidence: Comparisons by the id of the claim that they test.
        comparisons: Differences that no claim of the paper names.
        charts: Drawings.
        columns: Headings of the rows of pictures.
        strips: Rows of pictures.
        kinds: Settings that are shown by the kind of the edit too.
        left_out: Sentences on what is missing here, and why.
    """

    name: str
    title: str
    words: str
    measures: tuple[str, ...]
    settings: tuple[Setting, ...]
    edits: tuple[AnyEdit, ...]
    evidence: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    charts: tuple[Markup, ...] = ()
    columns: tuple[str, ...] = ()
    strips: tuple[PictureRow, ...] = ()
    kinds: tuple[Setting, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The measures for which any setting has a figure."""
        return tuple(name for name in self.measures if any(setting.measures(name) for setting in self.settings))

    def number(self, measure: str) -> int:
        """How many edits have a figure for a measure."""
        return max(setting.estimate(measure).n for setting in self.settings)

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
            "left_out": list(self.left_out),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each setting and edit."""
        return [
            {
                "part": self.name,
                "setting": setting.name,
                "index": index,
                **({"key": edit.key} if isinstance(edit, PictureEdit) else {}),
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
class EditBench:
    """Edits, their judge and the rules that all ablations of a paper share.

    Args:
        setup: What all runs share.
        edits: Test edits of all kinds, which take turns.
        references: What the judge compares them with.
        kinds: Kinds that count for `changed`, as the generator itself can make them.
    """

    setup: RunSetup
    edits: EditSet
    references: References
    kinds: tuple[str, ...]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All of the bench that decides values, as JSON."""
        return {**self.setup.settings, "kinds": self.kinds}

    @property
    def reader(self) -> AttributeReader:
        """The reader of scenes' attributes, which the judge of other pictures does not have."""
        assert isinstance(self.setup.judge, EditJudge), "attributes are read of scenes alone"
        return self.setup.judge.reader

    def of_kinds(self, kinds: Collection[str]) -> tuple[EditSet, References]:
        """Return the edits of some kinds, with what the judge compares them with."""
        edits = self.edits.chosen([row for row, kind in enumerate(self.edits.kinds) if kind in kinds])
        return edits, self.setup.judge.references(edits, self.setup.backbone)

    def keeps_more(self, better: Setting, worse: Setting) -> list[Comparison]:
        """Test that one setting keeps more of the picture than another, by the judge's measures that are at hand."""
        names = [name for name in self.setup.judge.keeping if better.measures(name)] or self.setup.judge.keeping
        return [
            difference(name, worse, better) if MEASURES[name].better == "lower" else difference(name, better, worse)
            for name in names
        ]

    def goes_further(self, further: Setting, other: Setting) -> list[Comparison]:
        """Test that the edits of one setting go further than those of another, by all measures of the judge."""
        return [difference(name, further, other) for name in self.setup.judge.going]

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
        for measure in ("kept", "psnr_outside", "psnr_inside", "clip", "structure", *FURTHER):
            values[measure] = [getattr(row, measure) for row in scores]
        if not self.edits.scenes:
            values = {name: found for name, found in values.items() if not all(map(math.isnan, found))}
        else:
            values = {name: found for name, found in values.items() if name not in FURTHER}
        return Setting(name, {**(further or {}), **values}, pictures[:PICTURED])


@dataclass(frozen=True)
class Bench(EditBench):
    """A bench with the exported encoder whose ablations they are.

    Args:
        pipeline: The exported encoder.
        lengths: Some of the same edits with short and with detailed prompts, as far as there are both.
    """

    pipeline: TurboEditPipeline
    lengths: Mapping[str, EditSet]

    @property
    def has_attention(self) -> bool:
        """Whether the generator has a UNet's attention, which can be frozen and asked for masks."""
        return self.pipeline.backbone.NETWORK_NAME == "unet"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All of the bench that decides values, as JSON."""
        return {**super().settings, "encoder": TurboEdit(self.pipeline).settings}


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
    pairs = zip(better.values.get(measure, ()), worse.values.get(measure, ()), strict=True)
    words = f"{about.title}: {better.name}, less {worse.name}"
    words += f", less {about.scale * margin:g} {about.unit}" if margin else ""
    return Comparison(words, about.unit, [about.scale * (a - b - margin) for a, b in pairs])


def above(measure: str, setting: Setting, bound: float) -> Comparison:
    """Test that a setting has more of a measure than `bound`."""
    about = MEASURES[measure]
    words = f"{about.title}: {setting.name}, less {about.scale * bound:g} {about.unit}"
    return Comparison(
        words.rstrip(), about.unit, [about.scale * (value - bound) for value in setting.values.get(measure, ())]
    )


def last_reconstructions(result: EditorResult) -> dict[str, Sequence[float]]:
    """PSNR of each image's last reconstruction: to the image, and to the VAE's round trip."""
    last = max(int(row["step"]) for row in result.reconstruction_rows)
    rows = [row for row in result.reconstruction_rows if row["step"] == last]
    return {measure: [float(row[measure]) for row in rows] for measure in ("psnr", "psnr_to_vae")}


def edit_costs(result: EditorResult) -> dict[str, Sequence[float]]:
    """Network evaluations and seconds of each image; the seconds are its batch's, shared out."""
    parts = {"invert": result.invert_costs, "edit": result.edit_costs[1.0]}
    return {
        f"{what}_{part}": [getattr(cost, what) for cost in costs for _ in range(cost.images)]
        for what in ("nfe", "seconds")
        for part, costs in parts.items()
    }


def edit_strips(edits: EditSet, shown: Sequence[int], settings: Sequence[Setting]) -> tuple[PictureRow, ...]:
    """Rows of the `shown` edits: source, true edit if known, each setting's picture with what was found of it."""
    beginnings = [edits.sources, edits.truths] if edits.has_truths else [edits.sources]
    return tuple(
        PictureRow(
            edits.edits[index].instruction or edits.target_prompts[index],
            (
                *(Picture(_shown_uri(pixels(images[index : index + 1])[0])) for images in beginnings),
                *(_picture(setting, index) for setting in settings),
            ),
        )
        for index in shown
        if index < len(edits)
    )


def strip_columns(edits: EditSet, names: Sequence[str]) -> tuple[str, ...]:
    """Headings of `edit_strips`: what comes first, and the names of the settings."""
    return ("source", *(("true edit",) if edits.has_truths else ()), *names)


def _shown_uri(picture: np.ndarray) -> str:
    return small_uri(Image.fromarray(picture), _PICTURE_SIDE)


def _picture(setting: Setting, index: int) -> Picture:
    changed, outside = (setting.values.get(name, [math.nan] * PICTURED)[index] for name in ("changed", "psnr_outside"))
    words = [] if math.isnan(changed) else ["✓" if changed else "✗"]
    words += [] if math.isnan(outside) else [f"{outside:.0f} dB"]
    return Picture(_shown_uri(setting.pictures[index]), " ".join(words), None if math.isnan(changed) else bool(changed))
