"""The one way in which editors are compared on scenes: strengths from validation, all figures from other scenes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from data.world.render import SQUARE
from eval.harness.results import finish
from eval.reconstructions.fidelity import Row, round_trip, vae_rows
from eval.scene_edits.edit_set import EditSet, sample_edit_set
from eval.scene_edits.figures import choose_strengths, comparison_figures, edit_rows, main_table
from eval.scene_edits.result import EditorResult
from models.backbone import Backbone
from models.shapes import Size


class SplitRun(Protocol):
    """A function that runs all compared editors on the edits of one split."""

    def __call__(
        self, edits: EditSet, split: str, num_reconstructions: int = 0, strengths: Mapping[str, float] | None = None
    ) -> dict[str, EditorResult]:
        """Return results by editor; `strengths` has one for each editor, in the place of its sweep."""
        ...


@dataclass(frozen=True)
class SceneComparison:
    """Results of a comparison on scenes, by editor.

    Args:
        strengths: Chosen on the validation edits.
        validation: Results on these; nothing of them is reported.
        edits: The test edits.
        test: Results on the test edits.
        heldout: Results on combinations that training never showed, at the chosen strengths; empty if not wanted.
    """

    strengths: dict[str, float]
    validation: dict[str, EditorResult]
    edits: EditSet
    test: dict[str, EditorResult]
    heldout: dict[str, EditorResult]

    def figures(self) -> dict[str, Any]:
        """The entries of results.json that all comparisons share."""
        return comparison_figures(self.test, self.heldout, self.strengths)

    def reconstruction_rows(self) -> list[Row]:
        """Rows of all reconstructions of all editors."""
        return [row for result in self.test.values() for row in result.reconstruction_rows]

    def vae_rows(self, backbone: Backbone) -> list[Row]:
        """Rows of the VAE's round trip of every image that an editor has reconstructed."""
        keys = sorted({str(row["key"]) for row in self.reconstruction_rows()})
        return vae_rows(round_trip(backbone, self.edits.sources[: len(keys)]), {}, keys)


def compare_edits(
    run: SplitRun,
    *,
    num: int,
    num_validation: int,
    num_heldout: int = 0,
    num_reconstructions: int = 0,
    seed: int,
    device: torch.device,
    size: Size = SQUARE,
) -> SceneComparison:
    """Choose strengths on validation, once for all edits, and run all editors on test and held-out edits.

    Args:
        run: Function that runs the editors.
        num: Test edits of each kind.
        num_validation: Validation edits of each kind.
        num_heldout: Held-out edits of each kind; 0 for none.
        num_reconstructions: How many test scenes are reconstructed, to the next whole batch.
        seed: Seed of the scenes.
        device: Place of the pictures.
        size: Canvas of the scenes, height and width in pixels.
    """
    validation = run(sample_edit_set("validation", num_validation, seed, device, size), "validation")
    strengths = choose_strengths(validation)
    edits = sample_edit_set("test", num, seed, device, size)
    test = run(edits, "test", num_reconstructions)
    heldout: dict[str, EditorResult] = {}
    if num_heldout:
        heldout = run(sample_edit_set("heldout", num_heldout, seed, device, size), "held out", strengths=strengths)
    return SceneComparison(strengths, validation, edits, test, heldout)


def finish_comparison(
    out: Path,
    found: SceneComparison,
    results: Mapping[str, Any],
    page: Callable[[], Path],
    vae: list[Row] | None = None,
    words: str = "",
) -> None:
    """Write and log a comparison: results.json, edits.csv, reconstructions.csv where `vae` is given, and the page.

    Args:
        vae: Rows of the VAE's round trip.
        words: Further lines of the summary.
    """
    rows = [*edit_rows(found.test, found.edits, "test"), *edit_rows(found.heldout, None, "heldout")]
    tables = {"edits.csv": rows}
    if vae is not None:
        tables["reconstructions.csv"] = [*vae, *found.reconstruction_rows()]
    finish(out, results, "\n".join(filter(None, [main_table(results), words])), tables, page)
