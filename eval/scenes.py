"""Edits of scenes against the truth: the encoder, the baselines on the same generator, and the references.

    python -m eval.scenes --encoder EXPORT --out DIR

Leaves DIR/index.html, results.json, edits.csv and reconstructions.csv.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.captioning import CaptioningConfig, CaptionMaker
from data.scenes import EDIT_KINDS, SIDE
from eval.attributes import AttributeReader
from eval.clip import ClipSimilarity
from eval.command import run_command
from eval.edit_set import EditSet, sample_edit_set
from eval.editors.editor import Editor
from eval.editors.suite import all_editors
from eval.editors.turboedit import TurboEdit
from eval.encoder import choose_device, load_encoder
from eval.fidelity import Row, round_trip, vae_rows
from eval.judge import Judge
from eval.report import write_scene_report
from eval.results import write_results, write_table
from eval.scene_results import (
    CEILING_REQUIRED,
    ENOUGH_TYPES,
    WRITTEN,
    Trials,
    better_in_both,
    changed_types,
    choose_strengths,
    edit_figures,
    equal_success_figures,
    noise_entries,
    reconstruction_figures,
    sweep_figures,
    type_success,
)
from eval.strength import KEPT_FLOOR
from eval.trial import Trial, try_editor
from eval.written_captions import write_captions
from models.backbone import Backbone
from models.turboedit_pipeline import TurboEditPipeline

logger = logging.getLogger(__name__)


def evaluate_scenes(
    encoder: Path,
    out: Path,
    num: int = 20,
    num_validation: int = 8,
    num_heldout: int = 4,
    num_reconstructions: int = 60,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    captioner: str | None = None,
    batch: int = 30,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure an encoder's edits of scenes against the true edits, beside baselines on the same generator.

    Strengths are chosen on validation, once for all edits; all that is reported comes from test and held-out scenes.

    Args:
        encoder: folder of an exported encoder
        out: folder of the report
        num: test edits of each of the nine kinds
        num_validation: validation edits of each kind, for the choice of strengths
        num_heldout: edits of each kind with combinations of shape and colour that training never showed; 0 for none
        num_reconstructions: of how many test scenes the reconstructions are measured by step, to the next whole batch
        attributes: folder of the attribute reader
        clip: folder of a CLIPModel; null leaves CLIP similarity out
        captioner: folder or hub id of an image-and-text model such as models/miniature/llava, for edits that start from
            captions that it writes and rewrites by the instruction; null leaves them out
        batch: images at a time
        seed: of the scenes
        device: auto, cpu, cuda ...
    """
    least = {"num": num, "num_validation": num_validation, "num_reconstructions": num_reconstructions, "batch": batch}
    if wrong := [f"{name} is {value}" for name, value in least.items() if value < 1]:
        raise ValueError(f"{', '.join(wrong)}; expected at least 1")
    place = choose_device(device)
    pipeline = load_encoder(encoder, place)
    backbone = pipeline.backbone
    if backbone.image_size != SIDE:
        raise ValueError(f"the generator of {encoder} makes {backbone.image_size} px images; scenes have {SIDE} px")
    judge = Judge(_load_reader(attributes, place), None if clip is None else ClipSimilarity(str(clip), place))
    bench = _Bench(pipeline, backbone, judge, batch)

    validation = bench.run(sample_edit_set("validation", num_validation, seed, place), "validation")
    chosen = choose_strengths(validation)
    test = sample_edit_set("test", num, seed, place)
    trials = bench.run(test, "test", num_reconstructions=num_reconstructions)
    captions = None
    if captioner is not None:
        chosen[WRITTEN] = chosen["turboedit"]
        maker = CaptionMaker(CaptioningConfig("transformers", model=captioner, backbone=str(encoder), device=device))
        trials[WRITTEN], captions = bench.try_written(test, maker, chosen[WRITTEN], num_reconstructions)
    heldout: Trials = {}
    if num_heldout:
        heldout = bench.run(sample_edit_set("heldout", num_heldout, seed, place), "held out", strengths=chosen)

    keys = list(dict.fromkeys(str(row["key"]) for row in trials["turboedit"].reconstruction_rows))
    vae = vae_rows(round_trip(backbone, test.sources[: len(keys)]), {}, keys)
    results = _results(trials, heldout, chosen, vae)
    if captions is not None:
        results["captions"] = {"model": captioner, **captions}
    results["about"] = {"encoder": str(encoder), "timesteps": pipeline.timesteps, "device": place.type, "seed": seed}
    write_results(out / "results.json", results)
    write_table(out / "edits.csv", [*_edit_rows(trials, test, "test"), *_edit_rows(heldout, None, "heldout")])
    write_table(
        out / "reconstructions.csv", [*vae, *(row for trial in trials.values() for row in trial.reconstruction_rows)]
    )
    page = write_scene_report(out, results, test, trials)
    logger.info("%s", summary(results))
    logger.info("report: %s", page)
    return results


class _Bench:
    """All editors of a pipeline, ready to be tried on sets of edits."""

    def __init__(self, pipeline: TurboEditPipeline, backbone: Backbone, judge: Judge, batch: int) -> None:
        self.pipeline = pipeline
        self.editors: list[Editor] = all_editors(pipeline)
        self.backbone = backbone
        self.judge = judge
        self.batch = batch

    def run(
        self, edits: EditSet, title: str, num_reconstructions: int = 0, strengths: Mapping[str, float] | None = None
    ) -> dict[str, Trial]:
        """A trial of every editor, at the strengths of its sweep or at the one given."""
        references = self.judge.references(edits, self.backbone)
        points = {e.name: e.strengths if strengths is None else (strengths[e.name],) for e in self.editors}
        total = len(edits) * sum(map(len, points.values()))
        trials = {}
        with tqdm(total=total, unit="edit", desc=title) as bar:
            for editor in self.editors:
                bar.set_postfix_str(editor.name)
                trials[editor.name] = try_editor(
                    editor,
                    edits,
                    references,
                    self.judge,
                    points[editor.name],
                    self.batch,
                    self.backbone,
                    num_reconstructions=0 if editor.name == "turboedit_mask" else num_reconstructions,
                    progress=bar.update,
                )
        return trials

    def try_written(
        self, edits: EditSet, maker: CaptionMaker, strength: float, num_reconstructions: int
    ) -> tuple[Trial, dict[str, Any]]:
        """A trial of the encoder with captions that `maker` writes, judged by the scenes' own, and their figures."""
        logger.info("captions of %d pictures, and their changes by the instructions", len(edits))
        written, figures = write_captions(edits, maker)
        references = self.judge.references(edits, self.backbone)
        with tqdm(total=len(edits), unit="edit", desc="test, written captions") as bar:
            trial = try_editor(
                TurboEdit(self.pipeline, name=WRITTEN),
                written,
                references,
                self.judge,
                (strength,),
                self.batch,
                self.backbone,
                num_reconstructions=num_reconstructions,
                progress=bar.update,
            )
        return trial, figures


def _load_reader(folder: Path, device: Any) -> AttributeReader:
    if not folder.is_dir():
        raise ValueError(f"there is no attribute reader at {folder}; say where it is with --attributes")
    return AttributeReader.load(folder, device)


def _results(trials: Trials, heldout: Trials, chosen: Mapping[str, float], vae: Sequence[Row]) -> dict[str, Any]:
    """Everything for results.json but `about`."""
    types = changed_types(trials["ceiling"])
    ceiling = type_success(trials["ceiling"], chosen["ceiling"])
    edits = {name: edit_figures(trial, chosen[name], types) for name, trial in trials.items()}
    return {
        "reconstruction": reconstruction_figures(vae, trials),
        "noise": noise_entries(trials),
        "edits": edits,
        "heldout": {name: edit_figures(trial, chosen[name], types) for name, trial in heldout.items()},
        "changed_types": {
            "types": types,
            "ceiling": {kind: estimate.to_dict() for kind, estimate in ceiling.items()},
            "required": CEILING_REQUIRED,
            "reached_by": sum(estimate.mean >= CEILING_REQUIRED for estimate in ceiling.values()),
            "enough": sum(estimate.mean >= CEILING_REQUIRED for estimate in ceiling.values()) >= ENOUGH_TYPES,
        },
        "strengths": dict(chosen),
        "strength_criterion": (
            f"the highest share of edits that happened, among strengths that keep {KEPT_FLOOR:.0%} of the untouched "
            "attributes by at least one standard error"
        ),
        "sweeps": {name: sweep_figures(trial, types) for name, trial in trials.items() if len(trial.strengths) > 1},
        "equal_success": equal_success_figures(trials, chosen, types),
        "better_in_both": better_in_both(edits, "turboedit"),
    }


def _edit_rows(trials: Trials, edits: EditSet | None, split: str) -> list[dict[str, Any]]:
    """A row for each editor, strength and edit, for edits.csv."""
    rows = []
    for name, trial in trials.items():
        for strength in trial.strengths:
            for index, verdict in enumerate(trial.verdicts[strength]):
                instruction = "" if edits is None else edits.edits[index].instruction
                row = {"split": split, "index": index, "editor": name, "strength": strength, "instruction": instruction}
                rows.append({**row, **verdict.to_row()})
    return rows


def summary(results: Mapping[str, Any]) -> str:
    """The main table as text."""

    def cell(estimate: Mapping[str, Any], scale: float, digits: int) -> str:
        return "      -" if estimate["mean"] is None else f"{scale * estimate['mean']:7.{digits}f}"

    lines = [f"{'editor':16}strength changed%   kept%  out dB   in dB    nfe"]
    for name, figures in results["edits"].items():
        nfe = sum(figures[key]["mean"] for key in ("nfe_invert", "nfe_edit"))
        cells = [cell(figures["changed"], 100, 1), cell(figures["kept"], 100, 1)]
        cells += [cell(figures["psnr_outside"], 1, 2), cell(figures["psnr_inside"], 1, 2)]
        lines.append(f"{name:16}{results['strengths'][name]:8g}  {' '.join(cells)} {nfe:6.1f}")
    types = results["changed_types"]
    if not types["enough"]:
        lines.append(
            f"Only {types['reached_by']} of {len(EDIT_KINDS)} edit types are within the generator's reach "
            f"(ceiling at {types['required']:.0%}); `changed` is averaged over: {', '.join(types['types'])}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(evaluate_scenes)
