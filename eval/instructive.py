"""Edits of scenes by instructions: InstructPix2Pix over its dual guidance beside TurboEdit with LLaVA's captions.

    python -m eval.instructive --instruct EXPORT --encoder TURBOEDIT_EXPORT --captioner models/miniature/llava --out DIR

TurboEdit's paper claims that it keeps more of the background at similar text similarity: that is judged.
Leaves DIR/index.html, results.json, edits.csv and DIR/trials: what is finished is read from there when the command is
started again.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from data.captioning.maker import CaptioningConfig, CaptionMaker
from data.jobs.command import run
from data.world.render import SIDE
from eval.editors.editor import Editor
from eval.editors.few_steps import generator_of
from eval.editors.instruct_pix2pix import InstructPix2Pix
from eval.editors.references import Ceiling, Identity, Truth
from eval.editors.titles import TEXT_GUIDED, title_of
from eval.editors.turboedit import TurboEdit
from eval.harness.exports import choose_device, load_encoder, read_index
from eval.harness.fingerprints import backbone_settings, network_fingerprint
from eval.harness.results import write_results, write_table
from eval.scene_edits.archive import TrialArchive
from eval.scene_edits.contest import Contest
from eval.scene_edits.edit_set import EditSet, sample_edit_set
from eval.scene_edits.figures import Trials, changed_types, choose_strengths, comparison_figures, edit_rows, summary
from eval.scene_edits.instructions import CLAIM, SOURCE, Comparison, judge_claim
from eval.scene_edits.judge import Judge, load_judge
from eval.scene_edits.page import write_instructive_page
from eval.scene_edits.sweeps import choose_strength
from eval.scene_edits.written_captions import write_captions
from models.turboedit_pipeline import TurboEditPipeline

logger = logging.getLogger(__name__)

OURS = "turboedit_instructive"


def evaluate_instructive(
    instruct: Path,
    encoder: Path,
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
    device: str = "auto",
) -> dict[str, Any]:
    """Measure edits of scenes by instructions against the true edits, and judge TurboEdit's claim about them.

    Guidance and strength are chosen on validation, once for all edits; all that is reported comes from test scenes.

    Args:
        instruct: folder of a diffusers InstructPix2Pix pipeline for scenes, as train.export makes
        encoder: folder of an exported TurboEdit encoder
        captioner: folder or hub id of an image-and-text model such as models/miniature/llava, which describes sources
            and rewrites its descriptions by the instructions, for TurboEdit
        out: folder of the report; an evaluation with the same options goes on where it was interrupted
        text_guidances: s_T of InstructPix2Pix, each above 1
        image_guidances: s_I of InstructPix2Pix, each at least 1, tried with every s_T
        strengths: of TurboEdit
        num_steps: Euler-ancestral steps of InstructPix2Pix
        num: test edits of each of the nine kinds
        num_validation: validation edits of each kind, for the choice of guidance and strength
        attributes: folder of the attribute reader
        clip: folder of a CLIPModel
        batch: images at a time
        seed: of the scenes
        device: auto, cpu, cuda ...
    """
    counts = {"num": num, "num_validation": num_validation, "num_steps": num_steps, "batch": batch}
    if wrong := [f"{name} is {value}" for name, value in counts.items() if value < 1]:
        raise ValueError(f"{', '.join(wrong)}; expected at least 1")
    _check_guidances(text_guidances, image_guidances)
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths are {list(strengths)}; expected at least one, all above 0")
    place = choose_device(device)
    pipeline = load_encoder(encoder, place)
    if pipeline.backbone.image_size != SIDE:
        size = pipeline.backbone.image_size
        raise ValueError(f"the generator of {encoder} makes {size} px images; scenes have {SIDE} px")
    rivals = _rivals(instruct, pipeline, text_guidances, image_guidances, num_steps, place)
    maker = CaptionMaker(CaptioningConfig("transformers", model=captioner, backbone=str(encoder), device=device))
    judge = load_judge(attributes, clip, place)
    ours = TurboEdit(pipeline, name=OURS)
    ours.strengths = tuple(sorted(set(strengths)))

    validation = sample_edit_set("validation", num_validation, seed, place)
    tried, _ = _try(ours, rivals, judge, maker, validation, "validation", out, batch)
    chosen = choose_strengths(tried)
    preferred = choose_rival(tried, chosen)
    test = sample_edit_set("test", num, seed, place)
    trials, captions = _try(ours, rivals, judge, maker, test, "test", out, batch)

    curves = {rival.name: trials[rival.name] for rival in rivals}
    comparisons = judge_claim(trials[OURS], chosen[OURS], curves, tried, changed_types(trials["ceiling"]))
    results = {
        **comparison_figures(trials, {}, chosen),
        "chosen": {OURS: chosen[OURS], "instruct_pix2pix": preferred},
        "claim": _claim_figures(comparisons),
        "captions": {"model": captioner, **captions},
        "about": {
            "instruct": str(instruct),
            "encoder": str(encoder),
            "timesteps": pipeline.timesteps,
            "text_guidances": {rival.name: rival.guidance for rival in rivals},
            "image_guidances": rivals[0].strengths,
            "num_steps": num_steps,
            "num_validation": num_validation,
            "device": place.type,
            "seed": seed,
        },
    }
    write_results(out / "results.json", results)
    write_table(out / "edits.csv", edit_rows(trials, test, "test"))
    page = write_instructive_page(out, results, test, trials, comparisons)
    logger.info("%s\n%s", summary(results), claim_words(comparisons, preferred, chosen))
    logger.info("report: %s", page)
    return results


def _check_guidances(text_guidances: Sequence[float], image_guidances: Sequence[float]) -> None:
    if not text_guidances or not image_guidances:
        given = f"text_guidances are {list(text_guidances)} and image_guidances {list(image_guidances)}"
        raise ValueError(f"{given}; expected at least one of both")
    if min(text_guidances) <= 1:
        raise ValueError(f"text_guidances has {min(text_guidances):g}; diffusers' pipeline guides only above 1")
    if min(image_guidances) < 1:
        raise ValueError(f"image_guidances has {min(image_guidances):g}; below 1 diffusers' pipeline does not guide")


def _rivals(
    folder: Path,
    pipeline: TurboEditPipeline,
    text_guidances: Sequence[float],
    image_guidances: Sequence[float],
    num_steps: int,
    device: torch.device,
) -> list[InstructPix2Pix]:
    """InstructPix2Pix at each s_T on one set of networks; its strengths are s_I, from weak edits to strong ones."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give an exported InstructPix2Pix pipeline by --instruct")
    read_index(folder, StableDiffusionInstructPix2PixPipeline.__name__)
    loaded = InstructPix2Pix(str(folder), device, num_steps=num_steps)
    size = loaded.pipeline.unet.config.sample_size * loaded.pipeline.vae_scale_factor
    if size != SIDE:
        raise ValueError(f"{folder} makes {size} px images; scenes have {SIDE} px: give another one by --instruct")
    if network_fingerprint(loaded.pipeline.vae) != network_fingerprint(pipeline.vae):
        raise ValueError(
            f"{folder} has another VAE than the encoder's generator, so their PSNR would not compare; give models of "
            "one miniature by --instruct and --encoder"
        )
    strengths = sorted(set(image_guidances), reverse=True)
    return [loaded.swept(f"{TEXT_GUIDED}{scale:g}", scale, strengths) for scale in sorted(set(text_guidances))]


def _try(
    turboedit: TurboEdit,
    rivals: Sequence[InstructPix2Pix],
    judge: Judge,
    maker: CaptionMaker,
    edits: EditSet,
    split: str,
    out: Path,
    batch: int,
) -> tuple[Trials, dict[str, Any]]:
    """Trials of TurboEdit on captions that `maker` writes, of the rivals and of the references; the captions' figures.

    All are judged by the scenes' own captions.
    """
    logger.info("captions of %d pictures (%s), and their changes by the instructions", len(edits), split)
    written, figures = write_captions(edits, maker)
    pipeline = turboedit.pipeline
    backbone = pipeline.backbone
    judges = [network_fingerprint(judge.reader), judge.clip and network_fingerprint(judge.clip.model)]
    shared = {"backbone": backbone_settings(backbone), "judges": judges}

    def contest(editors: Sequence[Editor], **about: Any) -> Contest:
        return Contest(editors, backbone, judge, batch, archive=TrialArchive(out / "trials", {**shared, **about}))

    ours = contest([turboedit], source_prompts=written.source_prompts)
    others = contest([*rivals, Identity(backbone), Truth(backbone), Ceiling(generator_of(pipeline))])
    trials = ours.run(written, f"{split}, TurboEdit", judged_as=edits) | others.run(edits, f"{split}, others")
    return trials, figures


def choose_rival(trials: Trials, strengths: Mapping[str, float]) -> dict[str, Any]:
    """The entry `chosen.instruct_pix2pix`: the best of all pairs of s_T and s_I by `choose_strength`.

    Each s_T has the best of its s_I already, so the best of these is the best of all.
    """
    types = changed_types(trials["ceiling"])
    rivals = {name: strengths[name] for name in trials if name.startswith(TEXT_GUIDED)}
    name = choose_strength(
        {name: trials[name].estimate(s, "changed", types) for name, s in rivals.items()},
        {name: trials[name].estimate(s, "kept") for name, s in rivals.items()},
    )
    return {"name": name, "text_guidance": float(name.removeprefix(TEXT_GUIDED)), "image_guidance": strengths[name]}


def _claim_figures(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The entry `claim`."""
    return {
        "sentence": CLAIM,
        "source": SOURCE,
        "verdict": comparisons[0].verdict,
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }


def claim_words(comparisons: Sequence[Comparison], preferred: Mapping[str, Any], strengths: Mapping[str, float]) -> str:
    """What was chosen and what became of the claim as text."""
    lines = [
        f"chosen: TurboEdit at strength {strengths[OURS]:g}, InstructPix2Pix at s_T {preferred['text_guidance']:g}, "
        f"s_I {preferred['image_guidance']:g}",
        f"{comparisons[0].verdict}: {CLAIM}",
    ]
    for found in comparisons:
        where = "CLIP" if found.measure == "clip" else "changed"
        note = "" if found.overlap else ", nearest: the sweeps do not overlap"
        lines.append(
            f"  PSNR outside, less {title_of(found.against)}, at equal {where} ({found.level:.3g}{note}): "
            f"{found.gain.words('dB')}, n = {found.gain.n}, {found.verdict}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.instructive", evaluate_instructive, argv)


if __name__ == "__main__":
    main()
