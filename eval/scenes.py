"""Edits of scenes against the truth: the encoder, the baselines on the same generator, and the references.

    python -m eval.scenes --encoder EXPORT --out DIR

Leaves DIR/index.html, results.json, edits.csv, reconstructions.csv and DIR/kept: what is finished is read from there
when the command is started again.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one
from eval.harness.training import training_steps
from models.options import MASK_THRESHOLD

logger = logging.getLogger(__name__)


def evaluate_scenes(
    encoder: str,
    out: Path,
    editors: tuple[str, ...] | None = None,
    num: int = 20,
    num_validation: int = 8,
    num_heldout: int = 4,
    num_reconstructions: int = 60,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    captioner: str | None = None,
    mask_threshold: float = MASK_THRESHOLD,
    canvas: Literal["square", "wide", "tall"] = "square",
    batch: int = 30,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure an encoder's edits of scenes against the true edits, beside baselines on the same generator.

    Strengths are chosen on validation, once for all edits; all that is reported comes from test and held-out scenes.

    Args:
        encoder: Folder or hub id of an exported encoder
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        editors: Names of those that are compared, beside turboedit and the references; null for all but what is
            compared on request (turboedit_mask_attention; turboedit_given and turboedit_given_paper, which are given
            the true mask)
        num: Test edits of each of the nine kinds
        num_validation: Validation edits of each kind, for the choice of strengths
        num_heldout: Edits of each kind with combinations of shape and colour that training never showed; 0 for none
        num_reconstructions: Number of test scenes whose reconstructions are measured by step, to the next whole batch
        attributes: Folder of the attribute reader
        clip: Folder of a CLIPModel; null leaves CLIP similarity out
        captioner: Folder or hub id of an image-and-text model such as models/miniature/llava, for edits that start from
            captions that it writes and rewrites by the instruction; null leaves them out
        mask_threshold: Share of its strongest place above which an automatic mask lets a place change
        canvas: Shape of the scenes: square 64x64, wide 80x48 or tall 48x80 pixels
        batch: Images at a time
        seed: Seed of the scenes
        dtype: Type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, num_validation=num_validation, num_reconstructions=num_reconstructions, batch=batch)
    folder_or_hub_id(encoder, "--encoder")
    existing(attributes, "--attributes", "folder of an attribute reader")

    from data.captioning.config import CaptioningConfig
    from data.captioning.maker import CaptionMaker
    from data.jobs.device import choose_device
    from data.world.render import CANVASES
    from eval.editors.catalogue import Command, available
    from eval.editors.models import FewStepModel, Needs
    from eval.editors.turboedit import TurboEdit
    from eval.harness.exports import export_folder, generator_place, load_scene_encoder
    from eval.harness.precision import name_of
    from eval.scene_edits.edit_set import EditSet
    from eval.scene_edits.figures import (
        FORMS,
        WRITTEN,
        better_in_both,
        equal_success_figures,
        noise_entries,
        reconstruction_figures,
        standings,
    )
    from eval.scene_edits.judge import load_judge
    from eval.scene_edits.page import write_scene_page
    from eval.scene_edits.protocol import compare_edits, finish_comparison
    from eval.scene_edits.result import EditorResult
    from eval.scene_edits.run import RunSetup, kept_results, run_editors
    from eval.scene_edits.written_captions import kept_captions

    place = choose_device(device)
    pipeline = load_scene_encoder(encoder, place, dtype)
    judge = load_judge(attributes, clip, place)
    known = available(Command.SCENES, FewStepModel(pipeline, mask_threshold=mask_threshold))
    compared = known.choose(None if editors is None else tuple(dict.fromkeys(("turboedit", *editors))))
    left_out = known.left_out if editors is None else {}
    for name, reason in left_out.items():
        logger.warning("%s is left out: %s", name, reason)
    setup = RunSetup(
        pipeline.backbone,
        judge,
        batch,
        kept_results(out),
        unreconstructed=FORMS,
        masked=[entry.name for entry, _ in known.editors if entry.needs & Needs.MASK],
    )

    def run_split(
        edits: EditSet, split: str, num_reconstructions: int = 0, strengths: Mapping[str, float] | None = None
    ) -> dict[str, EditorResult]:
        return run_editors(compared, edits, setup, split, num_reconstructions=num_reconstructions, strengths=strengths)

    found = compare_edits(
        run_split,
        num=num,
        num_validation=num_validation,
        num_heldout=num_heldout,
        num_reconstructions=num_reconstructions,
        seed=seed,
        device=place,
        size=CANVASES[canvas],
    )
    captions = None
    if captioner is not None:
        maker = CaptionMaker(
            CaptioningConfig("transformers", model=captioner, backbone=generator_place(encoder), device=device)
        )
        written, captions = kept_captions(found.edits, maker, setup.kept, "test")
        found.strengths[WRITTEN] = found.strengths["turboedit"]
        ours = [TurboEdit(pipeline, name=WRITTEN)]
        found.test[WRITTEN] = run_editors(
            ours,
            written,
            setup,
            "test, written captions",
            num_reconstructions=num_reconstructions,
            strengths=found.strengths,
            judged_as=found.edits,
        )[WRITTEN]

    vae = found.vae_rows(setup.backbone)
    figures = found.figures()
    signs = standings(found.test, found.strengths, figures["changed_types"]["types"])
    results = {
        "reconstruction": reconstruction_figures(vae, found.test),
        "noise": noise_entries(found.test),
        **figures,
        "equal_success": equal_success_figures(found.test, found.strengths, figures["changed_types"]["types"]),
        "standings": signs,
        "better_in_both": better_in_both(signs["turboedit"]),
        "left_out": [{"row": name, "reason": reason} for name, reason in left_out.items()],
    }
    if captions is not None:
        results["captions"] = {"model": captioner, **captions}
    results["about"] = about(
        place,
        encoder=encoder,
        training=training_steps(export_folder(encoder)),
        dtype=name_of(pipeline.encoder.dtype),
        timesteps=pipeline.timesteps,
        editors=editors,
        num=num,
        num_validation=num_validation,
        num_heldout=num_heldout,
        num_reconstructions=num_reconstructions,
        attributes=attributes,
        clip=clip,
        captioner=captioner,
        mask_threshold=mask_threshold,
        canvas=canvas,
        batch=batch,
        seed=seed,
    )
    finish_comparison(out, found, results, lambda: write_scene_page(out, results, found), vae)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.scenes", evaluate_scenes, argv)


if __name__ == "__main__":
    main()
