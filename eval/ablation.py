"""TurboEdit's ablations on scenes with known truth, and what becomes of each claim of its paper.

    python -m eval.ablation --encoder EXPORT --out DIR --lambda_encoders '{"0": EXPORT2, "1e-3": EXPORT3}' \
        --captioner MODEL --teacher.path PIPELINE

Leaves DIR/index.html, results.json, edits.csv (a row for each part, setting and edit) and DIR/kept: what is finished is
read from there when the command is started again. StyleDiffusion's claims are eval.style_claims', its ablation is
eval.many_step with configs/stylediffusion/ablation_miniature.yaml.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one, finish
from eval.harness.training import training_steps

PARTS = (
    "steps",
    "lambda",
    "prompts",
    "strength",
    "mask",
    "composed",
    "instructions",
    "disentangled",
    "one_step",
    "renoise",
    "reweighting",
)


@dataclass(frozen=True)
class DistilledFrom:
    """The model from which the encoder's generator was distilled."""

    path: str | None = None
    """Folder or hub id, such as models/miniature/teacher; null compares the generator with none."""
    num_steps: int = 20
    """DDIM steps."""
    guidance: float = 3.0
    """Guidance; eval.caption_accuracy finds the one at which it obeys best."""


NO_TEACHER = DistilledFrom()


def ablate(
    encoder: str,
    out: Path,
    num: int = 20,
    split: str = "test",
    steps: tuple[int, ...] | None = None,
    lambda_encoders: dict[str, str] | None = None,
    kl_weight: float | None = None,
    captioner: str | None = None,
    teacher: DistilledFrom = NO_TEACHER,
    parts: tuple[str, ...] = PARTS,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    batch: int = 30,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Take TurboEdit's parts away one by one, and say of each claim of its paper whether it holds here.

    A claim is confirmed if the 95 % interval of each of its comparisons, by bootstrap over the edits and paired where
    settings share them, lies on the claimed side.

    Args:
        encoder: Folder or hub id of an exported encoder
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        num: Edits of each of the nine kinds
        split: Scenes of the edits: test, or validation to settle settings on
        steps: Numbers of steps that are compared; null for those of 1, 2 and 4 that the encoder has
        lambda_encoders: Exports of encoders that differ in the training's kl_weight alone, by that weight, as JSON
        kl_weight: Weight of the KL term in the encoder's own training; null reads it from the export's README.md
        captioner: Folder or hub id of an image-and-text model such as models/miniature/llava, for edits by instruction
        teacher: What the generator was distilled from, for the same noise under edited captions
        parts: Some of steps, lambda, prompts, strength, mask, composed, instructions, disentangled, one_step, renoise,
            reweighting
        attributes: Folder of the attribute reader
        clip: Folder of a CLIPModel; null leaves CLIP similarity out
        batch: Images at a time
        seed: Seed of the scenes
        dtype: Type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"parts {', '.join(unknown)} are unknown; expected some of {', '.join(PARTS)}")
    folder_or_hub_id(encoder, "--encoder")
    existing(attributes, "--attributes", "folder of an attribute reader")

    from data.captioning.config import CaptioningConfig
    from data.captioning.maker import CaptionMaker
    from data.jobs.device import choose_device
    from eval.ablations.bench import Ablation, Bench
    from eval.ablations.composed import ablate_composed
    from eval.ablations.disentangled import ablate_disentangled, load_teacher
    from eval.ablations.kl_weight import ablate_lambda, load_lambda_encoders, read_lambda
    from eval.ablations.mask import ablate_mask
    from eval.ablations.one_step import ablate_one_step, ablate_renoise
    from eval.ablations.page import claims_words, write_ablation_page
    from eval.ablations.prompts import ablate_instructions, ablate_prompts
    from eval.ablations.reweighting import ablate_reweighting
    from eval.ablations.steps import ablate_steps
    from eval.ablations.strength import ablate_strength
    from eval.claims.judging import judged
    from eval.claims.turboedit import CLAIMS
    from eval.editors.few_steps import generator_of
    from eval.editors.references import Ceiling
    from eval.harness.exports import checked_steps, export_folder, generator_place, load_scene_encoder
    from eval.harness.precision import name_of
    from eval.scene_edits.edit_set import sample_edit_set
    from eval.scene_edits.figures import changed_types
    from eval.scene_edits.judge import load_judge
    from eval.scene_edits.run import RunSetup, kept_results, run_editors

    started = time.perf_counter()
    place = choose_device(device)
    pipeline = load_scene_encoder(encoder, place, dtype)
    counts = checked_steps(pipeline, steps)
    others = load_lambda_encoders(lambda_encoders or {}, pipeline, place, dtype)
    own = read_lambda(export_folder(encoder)) if kl_weight is None else kl_weight
    setup = RunSetup(pipeline.backbone, load_judge(attributes, clip, place), batch, kept_results(out))
    edits = sample_edit_set(split, num, seed, place)
    ceiling = run_editors([Ceiling(generator_of(pipeline))], edits, setup, "what the generator can do")["ceiling"]
    references = setup.judge.references(edits, setup.backbone)
    bench = Bench(setup, edits, references, changed_types(ceiling), pipeline)

    def instructions() -> Ablation:
        config = CaptioningConfig(
            "transformers", model=str(captioner), backbone=generator_place(encoder), device=device
        )
        return ablate_instructions(bench, CaptionMaker(config))

    def disentangled() -> Ablation:
        loaded = None
        if teacher.path is not None:
            loaded = load_teacher(teacher.path, pipeline.backbone, teacher.num_steps, teacher.guidance, place, dtype)
        return ablate_disentangled(bench, loaded, seed)

    makers = {
        "steps": lambda: ablate_steps(bench, counts),
        "lambda": lambda: ablate_lambda(bench, own, others),
        "prompts": lambda: ablate_prompts(bench),
        "strength": lambda: ablate_strength(bench),
        "mask": lambda: ablate_mask(bench),
        "composed": lambda: ablate_composed(bench, num, seed),
        "instructions": instructions,
        "disentangled": disentangled,
        "one_step": lambda: ablate_one_step(bench),
        "renoise": lambda: ablate_renoise(bench),
        "reweighting": lambda: ablate_reweighting(bench),
    }
    possible = {
        "instructions": captioner is not None,
        "one_step": 1 in pipeline.step_counts and pipeline.backbone.NETWORK_NAME == "unet",
        "renoise": not pipeline.backbone.schedule.reaches_pure_noise,
    }
    wanted = [name for name in PARTS if name in parts and possible.get(name, True)]
    made = [makers[name]() for name in wanted]
    judged_claims = judged({claim: tests for part in made for claim, tests in part.evidence.items()}, CLAIMS)
    results = {
        "claims": [result.to_dict() for result in judged_claims],
        "parts": {part.name: part.to_dict() for part in made},
        "about": about(
            place,
            encoder=encoder,
            training=training_steps(export_folder(encoder)),
            dtype=name_of(pipeline.encoder.dtype),
            timesteps=pipeline.timesteps,
            steps=counts,
            kl_weight=own,
            lambda_encoders=lambda_encoders or {},
            lambda_training={w: training_steps(export_folder(name)) for w, name in (lambda_encoders or {}).items()},
            captioner=captioner,
            teacher=teacher,
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
        lambda: write_ablation_page(out, results, made, judged_claims),
    )
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.ablation", ablate, argv)


if __name__ == "__main__":
    main()
