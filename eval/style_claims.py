"""StyleDiffusion's claims on scenes with known truth: keys and values, one word, the map of a word, tables 2 and 3.

    python -m eval.style_claims --backbone models/miniature/teacher --out DIR [--parts '[swapped]']

Leaves DIR/index.html, results.json, edits.csv (a row for each part, setting and edit) and DIR/kept: what is finished is
read from there when the command is started again. TurboEdit's claims are eval.ablation's; StyleDiffusion's figures 13
and 15 are eval.many_step with configs/stylediffusion/ablation_miniature.yaml.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.editors.options import NullTextSchedule, StyleTaus
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one, finish
from models.options import FitSchedule

PARTS = ("swapped", "closeness", "one_word", "attention")
SCHEDULE = FitSchedule()
NULL_TEXT = NullTextSchedule(lr=3e-2)
"""As in eval.many_step."""


def judge_style_claims(
    backbone: str,
    out: Path,
    num: int = 4,
    split: str = "test",
    parts: tuple[str, ...] = PARTS,
    num_steps: int = 20,
    guidance: float = 3.0,
    schedule: FitSchedule = SCHEDULE,
    null_text: NullTextSchedule = NULL_TEXT,
    lpips: Path | None = None,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    batch: int = 30,
    seed: int = 0,
    dtype: Dtype = "auto",
    variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Say of each claim of StyleDiffusion's paper whether it holds here.

    A claim is confirmed if the 95 % interval of each of its comparisons, by bootstrap over the edits and paired where
    settings share them, lies on the claimed side. All parts but swapped fit values to each picture.

    Args:
        backbone: Folder or hub id of a Stable Diffusion pipeline
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        num: Edits of each of the nine kinds
        split: Scenes of the edits: test, or validation to settle settings on
        parts: Some of swapped, closeness, one_word, attention
        num_steps: DDIM steps
        guidance: Guidance of all sampling
        schedule: StyleDiffusion's fit of each image; the official code's by default
        null_text: The optimisations of null-text inversion
        lpips: torchvision's weights of AlexNet (.pth or .safetensors), for LPIPS and NS-LPIPS; null leaves them out
        attributes: Folder of the attribute reader
        clip: Folder of a CLIPModel, for text similarity, structure distance and the image tokens of StyleDiffusion;
            null leaves out all parts but swapped
        batch: Images at a time
        seed: Seed of the scenes
        dtype: Type of the UNet and the text encoders; auto is float32, but for an SDXL float16 on a GPU and
            bfloat16 on a CPU
        variant: File variant of the backbone's weights, such as fp16
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"parts {', '.join(unknown)} are unknown; expected some of {', '.join(PARTS)}")
    folder_or_hub_id(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    existing(attributes, "--attributes", "folder of an attribute reader")
    if lpips is not None:
        existing(lpips, "--lpips", "file of weights")

    from data.jobs.device import choose_device
    from data.world.edits import EDIT_KINDS
    from eval.ablations.bench import EditBench
    from eval.ablations.fitted import Fits, ablate_closeness, ablate_one_word, ablate_word_maps
    from eval.ablations.page import STYLEDIFFUSION, claims_words, write_ablation_page
    from eval.ablations.swapped import ablate_swapped
    from eval.claims.judging import judged
    from eval.claims.stylediffusion import CLAIMS
    from eval.editors.models import ManyStepModel
    from eval.harness.exports import load_scene_backbone
    from eval.harness.precision import name_of
    from eval.metrics.lpips import load_lpips
    from eval.scene_edits.edit_set import sample_edit_set
    from eval.scene_edits.judge import load_judge
    from eval.scene_edits.run import RunSetup, kept_results
    from models.clip import ImageTokens
    from models.ddim import Ddim

    started = time.perf_counter()
    place = choose_device(device)
    model = load_scene_backbone(backbone, place, dtype, variant)
    tokens = None if clip is None else ImageTokens.load(str(clip), place)
    on = ManyStepModel(
        model, Ddim(model.schedule, num_steps), guidance, null_text, negative="", injection=StyleTaus(), tokens=tokens
    )
    network, about_lpips = (None, None) if lpips is None else load_lpips("alex", lpips, place)
    setup = RunSetup(model, load_judge(attributes, clip, place), batch, kept_results(out))
    edits = sample_edit_set(split, num, seed, place)
    bench = EditBench(setup, edits, setup.judge.references(edits, model), EDIT_KINDS)
    fits = Fits(on, schedule, network)
    makers = {
        "swapped": lambda: ablate_swapped(bench, on, seed),
        "closeness": lambda: ablate_closeness(bench, fits),
        "one_word": lambda: ablate_one_word(bench, fits),
        "attention": lambda: ablate_word_maps(bench, fits),
    }
    made = [makers[name]() for name in PARTS if name in parts and (name == "swapped" or clip is not None)]
    judged_claims = judged({claim: tests for part in made for claim, tests in part.evidence.items()}, CLAIMS)
    results = {
        "claims": [result.to_dict() for result in judged_claims],
        "parts": {part.name: part.to_dict() for part in made},
        "left_out": {},
        "lacking": (),
        "about": about(
            place,
            backbone=backbone,
            dtype=name_of(model.unet.dtype),
            num_steps=num_steps,
            guidance=guidance,
            schedule=schedule,
            null_text=null_text,
            lpips=about_lpips,
            attributes=attributes,
            clip=clip,
            num=num,
            split=split,
            batch=batch,
            changed_kinds=bench.kinds,
            seed=seed,
            minutes_of_last_start=(time.perf_counter() - started) / 60,
        ),
    }
    tables = {"edits.csv": [row for part in made for row in part.rows()]}
    finish(
        out,
        results,
        claims_words(judged_claims),
        tables,
        lambda: write_ablation_page(out, results, made, judged_claims, STYLEDIFFUSION),
    )
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.style_claims", judge_style_claims, argv)


if __name__ == "__main__":
    main()
