"""Edits of scenes by instructions: InstructPix2Pix over its dual guidance beside TurboEdit with LLaVA's captions.

    python -m eval.instructive --instruct EXPORT --encoder TURBOEDIT_EXPORT --captioner models/miniature/llava --out DIR

TurboEdit's paper claims that it keeps more of the background at similar text similarity: that is judged.
Leaves DIR/index.html, results.json, edits.csv and DIR/kept: what is finished is read from there when the command is
started again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one
from eval.harness.training import training_steps


def evaluate_instructive(
    instruct: str,
    encoder: str,
    captioner: str,
    out: Path,
    text_guidances: tuple[float, ...] = (1.5, 3.0, 5.0),
    image_guidances: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0),
    strengths: tuple[float, ...] = (0.25, 0.4, 0.55, 0.7, 1.0, 1.3, 1.7),
    num_steps: int = 20,
    num: int = 20,
    num_validation: int = 8,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path = Path("models/miniature/clip"),
    batch: int = 30,
    seed: int = 0,
    dtype: Dtype = "auto",
    instruct_variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure edits of scenes by instructions against the true edits, and judge TurboEdit's claim about them.

    Guidance and strength are chosen on validation, once for all edits; all that is reported comes from test scenes.

    Args:
        instruct: Folder or hub id of a diffusers InstructPix2Pix pipeline for scenes, as train.export makes
        encoder: Folder or hub id of an exported TurboEdit encoder
        captioner: Folder or hub id of an image-and-text model such as models/miniature/llava, which describes sources
            and rewrites its descriptions by the instructions, for TurboEdit
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        text_guidances: Values of s_T of InstructPix2Pix, each above 1
        image_guidances: Values of s_I of InstructPix2Pix, each at least 1, tried with every s_T
        strengths: Strengths of TurboEdit
        num_steps: Euler-ancestral steps of InstructPix2Pix
        num: Test edits of each of the nine kinds
        num_validation: Validation edits of each kind, for the choice of guidance and strength
        attributes: Folder of the attribute reader
        clip: Folder of a CLIPModel
        batch: Images at a time
        seed: Seed of the scenes
        dtype: Type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        instruct_variant: File variant of InstructPix2Pix's weights, such as fp16
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, num_validation=num_validation, num_steps=num_steps, batch=batch)
    _check_guidances(text_guidances, image_guidances)
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths are {list(strengths)}; expected at least one, all above 0")
    folder_or_hub_id(instruct, "--instruct", "folder of an InstructPix2Pix pipeline")
    folder_or_hub_id(encoder, "--encoder")
    existing(attributes, "--attributes", "folder of an attribute reader")

    from data.captioning.config import CaptioningConfig
    from data.captioning.maker import CaptionMaker
    from data.jobs.device import choose_device
    from eval.editors.editor import Editor
    from eval.editors.few_steps import generator_of
    from eval.editors.references import Ceiling, Identity, Truth
    from eval.editors.turboedit import in_papers_form
    from eval.harness.exports import export_folder, generator_place, load_scene_encoder
    from eval.harness.precision import name_of
    from eval.scene_edits.edit_set import EditSet
    from eval.scene_edits.figures import changed_types
    from eval.scene_edits.instructions import judge_claim
    from eval.scene_edits.instructive import OURS, choose_rival, claim_figures, claim_words, load_rivals
    from eval.scene_edits.judge import load_judge
    from eval.scene_edits.page import write_instructive_page
    from eval.scene_edits.protocol import compare_edits, finish_comparison
    from eval.scene_edits.result import EditorResult
    from eval.scene_edits.run import RunSetup, kept_results, run_editors
    from eval.scene_edits.written_captions import kept_captions

    place = choose_device(device)
    pipeline = load_scene_encoder(encoder, place, dtype)
    backbone = pipeline.backbone
    rivals = load_rivals(instruct, pipeline, text_guidances, image_guidances, num_steps, place, instruct_variant)
    maker = CaptionMaker(
        CaptioningConfig("transformers", model=captioner, backbone=generator_place(encoder), device=device)
    )
    setup = RunSetup(backbone, load_judge(attributes, clip, place), batch, kept_results(out))
    ours = in_papers_form(pipeline, OURS)
    ours.strengths = tuple(sorted(set(strengths)))
    others: list[Editor] = [*rivals, Identity(backbone), Truth(backbone), Ceiling(generator_of(pipeline))]
    captions = {}

    def run_split(
        edits: EditSet, split: str, num_reconstructions: int = 0, strengths: Mapping[str, float] | None = None
    ) -> dict[str, EditorResult]:
        """TurboEdit works on written captions; all are judged by the scenes' own."""
        written, captions[split] = kept_captions(edits, maker, setup.kept, split)
        found = run_editors([ours], written, setup, f"{split}, TurboEdit", strengths=strengths, judged_as=edits)
        return found | run_editors(others, edits, setup, f"{split}, others", strengths=strengths)

    found = compare_edits(run_split, num=num, num_validation=num_validation, seed=seed, device=place)
    preferred = choose_rival(found.validation, found.strengths)
    comparisons = judge_claim(
        found.test[OURS],
        found.strengths[OURS],
        {rival.name: found.test[rival.name] for rival in rivals},
        found.validation,
        changed_types(found.test["ceiling"]),
    )
    results = {
        **found.figures(),
        "chosen": {OURS: found.strengths[OURS], "instruct_pix2pix": preferred},
        "claim": claim_figures(comparisons),
        "captions": {"model": captioner, **captions["test"]},
        "about": about(
            place,
            instruct=instruct,
            instruct_training=training_steps(export_folder(instruct)),
            encoder=encoder,
            training=training_steps(export_folder(encoder)),
            dtype=name_of(pipeline.encoder.dtype),
            timesteps=pipeline.timesteps,
            text_guidances={rival.name: rival.guidance for rival in rivals},
            image_guidances=rivals[0].strengths,
            num_steps=num_steps,
            num=num,
            num_validation=num_validation,
            attributes=attributes,
            clip=clip,
            batch=batch,
            seed=seed,
        ),
    }
    finish_comparison(
        out,
        found,
        results,
        lambda: write_instructive_page(out, results, found, comparisons),
        words=claim_words(comparisons, preferred, found.strengths),
    )
    return results


def _check_guidances(text_guidances: Sequence[float], image_guidances: Sequence[float]) -> None:
    if not text_guidances or not image_guidances:
        given = f"text_guidances are {list(text_guidances)} and image_guidances {list(image_guidances)}"
        raise ValueError(f"{given}; expected at least one of both")
    if min(text_guidances) <= 1:
        raise ValueError(f"text_guidances has {min(text_guidances):g}; diffusers' pipeline guides only above 1")
    if min(image_guidances) < 1:
        raise ValueError(f"image_guidances has {min(image_guidances):g}; below 1 diffusers' pipeline does not guide")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.instructive", evaluate_instructive, argv)


if __name__ == "__main__":
    main()
