"""Many editors on sets of edits under one judge."""

from collections.abc import Mapping, Sequence

from tqdm import tqdm

from data.world.edits import EDIT_KINDS
from eval.editors.editor import Editor, TargetFittingEditor, settings_of
from eval.scene_edits.archive import TrialArchive
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.judge import Judge, References
from eval.scene_edits.trial import Trial, try_editor
from models.backbone import Backbone


class Contest:
    """Editors, ready to be tried.

    Args:
        editors: with different names.
        batch: images at a time; an editor that fits something to each target gets one.
        num_edits: by editor, how many edits of each kind it is tried on at most; all by default. Sets begin alike, so
            these are edits that the others see too.
        unreconstructed: editors whose reconstructions are not measured, since their inversion is another editor's.
        masked: editors that are given the true mask of each edit.
        archive: where finished trials are kept and found again, or None.
    """

    def __init__(
        self,
        editors: Sequence[Editor],
        backbone: Backbone,
        judge: Judge,
        batch: int,
        *,
        num_edits: Mapping[str, int] | None = None,
        unreconstructed: Sequence[str] = (),
        masked: Sequence[str] = (),
        archive: TrialArchive | None = None,
    ) -> None:
        self.editors = tuple(editors)
        self.backbone = backbone
        self.judge = judge
        self.batch = batch
        self.num_edits = num_edits or {}
        self.unreconstructed = unreconstructed
        self.masked = masked
        self.archive = archive
        # Before any of them works, as some keep what they find.
        self._settings = {} if archive is None else {editor.name: settings_of(editor) for editor in editors}

    def run(
        self,
        edits: EditSet,
        title: str,
        num_reconstructions: int = 0,
        strengths: Mapping[str, float] | None = None,
        judged_as: EditSet | None = None,
    ) -> dict[str, Trial]:
        """A trial of every editor.

        Args:
            title: of the progress bar.
            strengths: one for each editor, in the place of its sweep.
            judged_as: the same edits with the captions that results are compared with; by default those of `edits`.
        """
        references = self.judge.references(judged_as or edits, self.backbone)
        points = {e.name: e.strengths if strengths is None else (strengths[e.name],) for e in self.editors}
        parts = {e.name: edits.first(self.num_edits.get(e.name, len(edits)) * len(EDIT_KINDS)) for e in self.editors}
        trials = {}
        with tqdm(
            total=sum(len(parts[name]) * len(found) for name, found in points.items()), unit="edit", desc=title
        ) as bar:
            for editor in self.editors:
                name = editor.name
                bar.set_postfix_str(name)
                measured = 0 if name in self.unreconstructed else num_reconstructions
                trials[name] = self._try(editor, parts[name], references, points[name], measured, bar)
        return trials

    def _try(
        self,
        editor: Editor,
        edits: EditSet,
        references: References,
        strengths: tuple[float, ...],
        num_reconstructions: int,
        bar: tqdm,
    ) -> Trial:
        """One editor's trial, from the archive if it is there."""
        settings = {}
        if self.archive is not None:
            settings = self.archive.settings(self._settings[editor.name], edits, strengths, num_reconstructions)
            found = self.archive.read(editor.name, settings)
            if found is not None:
                bar.update(len(edits) * len(strengths))
                return found
        # What is fitted to a target is kept for its strengths: of one image at a time it fits into memory.
        alone = isinstance(editor, TargetFittingEditor)
        trial = try_editor(
            editor,
            edits,
            references,
            self.judge,
            strengths,
            1 if alone else self.batch,
            self.backbone,
            num_reconstructions=num_reconstructions,
            with_masks=editor.name in self.masked,
            progress=bar.update,
        )
        if self.archive is not None:
            self.archive.write(trial, settings)
        return trial
