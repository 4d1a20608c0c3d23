"""Edits of scenes against the truth: the encoder, the baselines on the same generator, and the references.

    python -m eval.scenes --encoder EXPORT --out DIR

Leaves DIR/index.html, results.json, edits.csv and reconstructions.csv.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.captioning.maker import CaptioningConfig, CaptionMaker
from data.jobs.command import run
from data.world.render import SIDE
from eval.editors.catalogue import Command, FewStepModel, available
from eval.editors.editor import Editor
from eval.editors.turboedit import TurboEdit
from eval.harness.exports import choose_device, load_encoder
from eval.harness.results import write_results, write_table
from eval.reconstructions.fidelity import Row, round_trip, vae_rows
from eval.scene_edits.contest import Contest
from eval.scene_edits.edit_set import EditSet, sample_edit_set
from eval.scene_edits.figures import (
    WRITTEN,
    Trials,
    better_in_both,
    choose_strengths,
    comparison_figures,
    edit_rows,
    equal_success_figures,
    noise_entries,
    reconstruction_figures,
    summary,
)
from eval.scene_edits.judge import load_judge
from eval.scene_edits.page import write_scene_report
from eval.scene_edits.trial import Trial, try_editor
from eval.scene_edits.written_captions import write_captions

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
    judge = load_judge(attributes, clip, place)
    compared = available(Command.SCENES, FewStepModel(pipeline)).choose()
    contest = Contest(compared, backbone, judge, batch, unreconstructed=("turboedit_mask",))

    validation = contest.run(sample_edit_set("validation", num_validation, seed, place), "validation")
    chosen = choose_strengths(validation)
    test = sample_edit_set("test", num, seed, place)
    trials = contest.run(test, "test", num_reconstructions=num_reconstructions)
    captions = None
    if captioner is not None:
        chosen[WRITTEN] = chosen["turboedit"]
        maker = CaptionMaker(CaptioningConfig("transformers", model=captioner, backbone=str(encoder), device=device))
        trials[WRITTEN], captions = _try_written(
            contest, TurboEdit(pipeline, name=WRITTEN), test, maker, chosen[WRITTEN], num_reconstructions
        )
    heldout: Trials = {}
    if num_heldout:
        heldout = contest.run(sample_edit_set("heldout", num_heldout, seed, place), "held out", strengths=chosen)

    keys = list(dict.fromkeys(str(row["key"]) for row in trials["turboedit"].reconstruction_rows))
    vae = vae_rows(round_trip(backbone, test.sources[: len(keys)]), {}, keys)
    results = _results(trials, heldout, chosen, vae)
    if captions is not None:
        results["captions"] = {"model": captioner, **captions}
    results["about"] = {"encoder": str(encoder), "timesteps": pipeline.timesteps, "device": place.type, "seed": seed}
    write_results(out / "results.json", results)
    write_table(out / "edits.csv", [*edit_rows(trials, test, "test"), *edit_rows(heldout, None, "heldout")])
    write_table(
        out / "reconstructions.csv", [*vae, *(row for trial in trials.values() for row in trial.reconstruction_rows)]
    )
    page = write_scene_report(out, results, test, trials)
    logger.info("%s", summary(results))
    logger.info("report: %s", page)
    return results


def _try_written(
    contest: Contest, editor: Editor, edits: EditSet, maker: CaptionMaker, strength: float, num_reconstructions: int
) -> tuple[Trial, dict[str, Any]]:
    """A trial of `editor` with captions that `maker` writes, judged by the scenes' own, and the captions' figures."""
    logger.info("captions of %d pictures, and their changes by the instructions", len(edits))
    written, figures = write_captions(edits, maker)
    references = contest.judge.references(edits, contest.backbone)
    with tqdm(total=len(edits), unit="edit", desc="test, written captions") as bar:
        trial = try_editor(
            editor,
            written,
            references,
            contest.judge,
            (strength,),
            contest.batch,
            contest.backbone,
            num_reconstructions=num_reconstructions,
            progress=bar.update,
        )
    return trial, figures


def _results(trials: Trials, heldout: Trials, chosen: Mapping[str, float], vae: Sequence[Row]) -> dict[str, Any]:
    """Everything for results.json but `about`."""
    compared = comparison_figures(trials, heldout, chosen)
    return {
        "reconstruction": reconstruction_figures(vae, trials),
        "noise": noise_entries(trials),
        **compared,
        "equal_success": equal_success_figures(trials, chosen, compared["changed_types"]["types"]),
        "better_in_both": better_in_both(compared["edits"], "turboedit"),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.scenes", evaluate_scenes, argv)


if __name__ == "__main__":
    main()
